"""Where does q(x_{t-1} | x_t, x_0) come from?

From Bayes' rule: it is q(x_t | x_{t-1}) q(x_{t-1} | x_0), up to a factor. Both are Gaussians in
x_{t-1}. The exponent of a Gaussian is a parabola, and two parabolas add up to a parabola, so the
product is a Gaussian. The precisions (1 / variance) add up, and that gives the variance beta_tilde.
The mean averages what x_t says and what x_0 says, with the precisions as weights.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff import normal
from npdiff.forward import q_marginal, q_posterior, q_sample, q_step, x_0_from_eps
from npdiff.reverse import mean_per_eps, p_mean_from_eps
from npdiff.schedule import Schedule, cosine

rng = np.random.default_rng(0)
schedule = cosine(T=20)
x_0 = np.array([[1.0]])  # one row of one coordinate
eps = np.array([[-1.5]])
x = np.linspace(-12, 12, 24_001)[:, None]  # a grid: every x_{t-1} that x_t may have come from
dx = 24 / 24_000
views = []

print("Bayes' rule on the grid: likelihood of x_{t-1} times prior, over the integral of the two")
for t in (2, 10, 18):
    s = schedule.at(t, x_0)
    x_t = q_sample(x_0, t, eps, schedule)
    # The chain has no memory: once x_{t-1} is known, x_0 says nothing more about x_t.
    likelihood = np.exp(normal.log_prob(x_t, s.alpha**0.5 * x, s.beta))  # q(x_t | x_{t-1} = x)
    prior = np.exp(normal.log_prob(x, *q_marginal(x_0, t - 1, schedule)))  # q(x_{t-1} = x | x_0)
    evidence = (likelihood * prior).sum() * dx  # exact to rounding: the grid is fine and wide
    posterior = likelihood * prior / evidence
    mean = (x * posterior).sum() * dx
    var = ((x - mean) ** 2 * posterior).sum() * dx

    mean_q, var_q = q_posterior(x_0, x_t, t, schedule)
    q_x_t = np.exp(normal.log_prob(x_t, *q_marginal(x_0, t, schedule)))
    lesson.equal(f"t = {t}: the integral = q(x_t | x_0)", evidence, q_x_t.item())
    lesson.equal(f"t = {t}: the mean = that of q_posterior", mean, mean_q.item())
    lesson.equal(f"t = {t}: the variance = that of q_posterior", var, var_q)
    near = np.abs(x[:, 0] - mean) < 7 * var**0.5  # what the picture shows
    lines = [  # all of one height, since only their places and widths matter
        draw.Series("likelihood", x[near, 0], likelihood[near, 0] / likelihood.max()),
        draw.Series("prior", x[near, 0], prior[near, 0] / prior.max(), draw.DATA),
        draw.Series("product", x[near, 0], posterior[near, 0] / posterior.max(), draw.INK, 2.4),
    ]
    title = f"A step back from t = {t} of 20"
    extent = (x[near].min(), x[near].max(), 0, 1.1)
    views.append(draw.View(title, lines, "x_{t-1}", "density / its highest value", extent=extent))

print("Why the product is a Gaussian: each exponent is -1/2 times a parabola; here at t = 10")
t = 10
s = schedule.at(t, x_0)
x_t = q_sample(x_0, t, eps, schedule)
a = s.alpha**0.5
from_x_t = (x_t - a * x) ** 2 / s.beta  # -2 log of the likelihood, without its constant
from_x_0 = (x - s.signal_prev * x_0) ** 2 / s.noise_prev**2  # and of the prior
A = s.alpha / s.beta + 1 / s.noise_prev**2  # what multiplies x^2: the precisions, added
B = a * x_t / s.beta + s.signal_prev * x_0 / s.noise_prev**2  # what multiplies -2 x
C = x_t**2 / s.beta + (s.signal_prev * x_0) ** 2 / s.noise_prev**2  # what holds no x
both = from_x_t + from_x_0
square = A * (x - B / A) ** 2  # -2 log of a Gaussian: mean B/A, variance 1/A
in_x = (x - x_t / a) ** 2 * s.alpha / s.beta  # so x_t says: x is x_t / a, with precision alpha/beta
lesson.equal("(x_t - a x)^2/beta = (x - x_t/a)^2 alpha/beta", from_x_t, in_x)
lesson.equal("the two parabolas = A x^2 - 2 B x + C", both, A * x**2 - 2 * B * x + C)
lesson.equal("   = A (x - B/A)^2 + C - B^2/A", both, square + C - B**2 / A)
lesson.equal("C - B^2/A = (x_t - signal x_0)^2/noise^2", C - B**2 / A, eps**2)  # of q(x_t | x_0)

print("At every t >= 2 and on any schedule: the precisions add up, and beta_tilde appears")
exploding = Schedule(np.ones(21), np.concatenate([[0.0], np.geomspace(0.01, 10.0, 20)]))
for name, table in (("cosine", schedule), ("exploding", exploding)):
    t = np.arange(2, 21)
    x_t, point = rng.standard_normal((2, 19, 1))  # an x_t and an x_0 for each t
    s = table.at(t, x_t)
    v_prev = s.noise_prev**2
    v = s.noise**2
    precision = s.alpha / s.beta + 1 / v_prev  # = (alpha v_prev + beta) / (beta v_prev)
    mean = (s.alpha**0.5 / s.beta * x_t + s.signal_prev / v_prev * point) / precision
    mean_q, var_q = q_posterior(point, x_t, t, table)
    lesson.equal(f"{name}: a step keeps alpha v_prev + beta = v", s.alpha * v_prev + s.beta, v)
    lesson.equal(f"{name}: precision = v/(beta v_prev)", precision * s.beta * v_prev / v, 1.0)
    lesson.equal(f"{name}: 1/precision = beta_tilde, q_posterior", 1 / precision, var_q)
    lesson.equal(f"{name}: mean B/precision = q_posterior", mean, mean_q)
part = schedule.beta_tilde[[2, 10, 18]] / schedule.beta[[2, 10, 18]]
print("  cosine: beta_tilde/beta is {:.2f}, {:.2f}, {:.2f} at t = 2, 10, 18".format(*part))

print("At t = 1 the prior is x_0 itself: v_prev = 0 and beta_1 = v_1, so x_t has no weight")
s = schedule.at(1, x_0)
x_1 = q_sample(x_0, 1, eps, schedule)
mean_q, var_q = q_posterior(x_0, x_1, 1, schedule)
lesson.equal("beta_1/v_1 x_0 = x_0, the mean of q_posterior", s.beta / s.noise**2 * x_0, mean_q)
lesson.equal("v_prev/v_1 beta_1 = 0, its variance", s.noise_prev**2 / s.noise**2 * s.beta, var_q)

print("A sampler has x_t and a guess of eps: with x_0 = (x_t - noise eps)/signal the mean is mu")
t = np.arange(1, 21)
x_t, eps_hat = rng.standard_normal((2, 20, 1))  # an x_t and a guess for each t
s = schedule.at(t, x_t)
a = s.alpha**0.5
weight_x_t = a * s.noise_prev**2 / s.noise**2  # the two weights of q_posterior's mean
weight_x_0 = s.signal_prev * s.beta / s.noise**2
of_x_t = weight_x_t + weight_x_0 / s.signal
of_eps = -weight_x_0 * s.noise / s.signal  # where signal_prev / signal = 1/a
lesson.equal("what multiplies x_t is 1/a", of_x_t, 1 / a)
lesson.equal("what multiplies eps is -beta/(a noise)", of_eps, -s.beta / (a * s.noise))
lesson.equal("the same in the book, mean_per_eps", of_eps, mean_per_eps(t, schedule)[:, None])
x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
mean, _ = q_posterior(x_0_hat, x_t, t, schedule)
lesson.equal("mu, eq. (11), p_mean_from_eps", mean, p_mean_from_eps(x_t, t, eps_hat, schedule))

print("In 100,000 chains from x_0: the rest, which is x_{t-1} minus the mean of q_posterior")
n = 100_000
t = 10
start = np.repeat(x_0, n, axis=0)
x_prev = q_sample(start, t - 1, rng.standard_normal((n, 1)), schedule)
x_t = q_step(x_prev, t, rng.standard_normal((n, 1)), schedule)
mean_q, var_q = q_posterior(start, x_t, t, schedule)
rest = x_prev - mean_q
error = np.sqrt(var_q / n)
lesson.equal("the rest has the mean 0", rest.mean(), 0.0, error)
slant = (rest * x_t).mean()  # not 0 if another weight of x_t were right
lesson.equal("and so has the rest times x_t", slant, 0.0, error * (x_t**2).mean() ** 0.5)
lesson.equal("the rest has the variance beta_tilde", rest.var(), var_q, var_q * np.sqrt(2 / n))

draw.board(
    "out/lessons/02.png",
    views,
    f"What is known of x_{{t-1}} when x_{{0}} = {x_0.item():g} and x_{{t}} are given. "
    "Prior: what x_{0} says, q(x_{t-1} | x_{0}). Likelihood: what x_{t} says, q(x_{t} | x_{t-1}) "
    "as a function of x_{t-1}. Their product, scaled, is q(x_{t-1} | x_{0}, x_{t}). It is narrower "
    "than both and lies nearer to the narrower one: at t = 2 that is the prior, "
    "at t = 10 the likelihood.",
    columns=3,
    height=260,
)
print("out/lessons/02.png")

# Change this, and see:
#   for t in (2, 10, 20)              at t = 20 the likelihood is flat and the product is the prior
#   x_0 = np.array([[3.0]])           the means move, the variances stay: they depend on t alone
#   B = s.alpha * x_t / s.beta + ...  three lines DISAGREE: alpha for its root
