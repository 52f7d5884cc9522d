"""Why is q(x_t | x_0) that Gaussian, whatever t is?

A step shrinks x and adds noise. A Gaussian stays a Gaussian, so only its mean and its variance need
to be followed: the mean times a, the variance times a^2 plus b^2. With a^2 = 1 - beta and b^2 =
beta the t steps telescope to the mean signal_t x_0 and the variance noise_t^2 = 1 - signal_t^2.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff import normal
from npdiff.forward import prior_kl, q_marginal, q_sample, q_step
from npdiff.schedule import linear

rng = np.random.default_rng(0)
schedule = linear(T=1000)
T = schedule.T
beta = schedule.beta  # beta[1..T], and beta[0] = 0
x_0 = np.array([[1.5]])  # a data point: one row of one coordinate

print("A step is x_t = a x_{t-1} + b eps, with a = sqrt(1 - beta_t) and b = sqrt(beta_t)")
mean = np.zeros(T + 1)
var = np.zeros(T + 1)  # var[0] = 0: at t = 0, x_0 itself, nothing is random yet
mean[0] = x_0.item()
for t in range(1, T + 1):
    a = np.sqrt(1 - beta[t])
    b = np.sqrt(beta[t])
    mean[t] = a * mean[t - 1]  # E[a x + b eps] = a E[x]
    var[t] = a**2 * var[t - 1] + b**2  # Var[a x + b eps] = a^2 Var[x] + b^2: eps is independent
alpha_bar = np.cumprod(1 - beta)
book_mean = np.zeros(T)
book_var = np.zeros(T)
for t in range(1, T + 1):
    mean_q, var_q = q_marginal(x_0, t, schedule)
    book_mean[t - 1] = mean_q.item()
    book_var[t - 1] = var_q
lesson.equal("mean after t steps = sqrt(alpha_bar_t) x_0", mean, np.sqrt(alpha_bar) * mean[0])
lesson.equal("variance after t steps = 1 - alpha_bar_t", var, 1 - alpha_bar)
lesson.equal("the same mean in the book, q_marginal", mean[1:], book_mean)
lesson.equal("the same variance in the book, q_marginal", var[1:], book_var)

print("Why it is a Gaussian: u ~ N(0, v_1) and e ~ N(0, v_2), independent, have a Gaussian sum")
v_1, v_2 = 0.6, 0.4  # u stands for a x_{t-1}, without its mean, and e for b eps
u = np.linspace(-12, 12, 4801)  # a grid of all that u may be
du = 24 / 4800
y = np.linspace(-3, 3, 61)[:, None]  # some values of the sum. If it is y, then e = y - u
v = v_1 + v_2
exponent = u**2 / v_1 + (y - u) ** 2 / v_2  # -2 log of both densities, without their constants
square = (u - v_1 / v * y) ** 2 * v / (v_1 * v_2)  # a Gaussian of u, moved by y: its integral
lesson.equal("u^2/v_1 + (y - u)^2/v_2 = square + y^2/v", exponent, square + y**2 / v)  # holds no y
both = np.exp(normal.log_prob(u, 0.0, v_1) + normal.log_prob(y - u, 0.0, v_2))
density = both.sum(axis=1) * du  # p(y): the integral over every way to split y into u and e
gaussian = np.exp(normal.log_prob(y[:, 0], 0.0, v))
lesson.equal("density of u + e = N(0, v_1 + v_2)", density, gaussian)

print("The same with 100,000 chains, step by step, and in one jump")
n = 100_000
shown = [t for t in (1, 10, 50, 200) if t <= T]
x_t = np.full((n, 1), x_0.item())
for t in range(1, max(shown) + 1):
    x_t = q_step(x_t, t, rng.standard_normal((n, 1)), schedule)  # a new eps in every step
    if t in shown:
        jump = q_sample(np.full((n, 1), x_0.item()), t, rng.standard_normal((n, 1)), schedule)
        by_steps = x_t.ravel()
        v = var[t]
        fourth = ((by_steps - mean[t]) ** 4).mean()  # 3 v^2 if Gaussian, 1.8 v^2 if uniform
        mean_error = np.sqrt(v / n)  # of n draws of a Gaussian, as the next two
        var_error = v * np.sqrt(2 / n)
        fourth_error = v**2 * np.sqrt(96 / n)  # E[x^8] - E[x^4]^2 = (105 - 9) v^4
        lesson.equal(f"mean of the chains at t = {t}", by_steps.mean(), mean[t], mean_error)
        lesson.equal(f"variance of the chains at t = {t}", by_steps.var(), v, var_error)
        lesson.equal("  their 4th moment = 3 variance^2", fourth, 3 * v**2, fourth_error)
        lesson.equal(f"variance of the jumps to t = {t}", jump.var(), v, var_error)

print("Why beta stands under the root: data of variance 1 keep the variance 1")
kept = (1 - beta) * 1 + beta  # a^2 Var[x] + b^2 with Var[x] = 1
without_root = 1.0  # the slip a = 1 - beta, b = beta
for t in range(1, T + 1):
    without_root = (1 - beta[t]) ** 2 * without_root + beta[t] ** 2
lesson.equal("(1 - beta) 1 + beta = 1", kept, 1.0)
print(f"  with a = 1 - beta and b = beta the variance at T would be {without_root:.2g}, not 1")

print("What T does: KL(q(x_T | x_0) || N(0, 1)), in nats, which no network can reduce")
Ts = np.array([50, 100, 200, 500, 1000])
kls = []
for steps in Ts:
    signal = np.prod(np.sqrt(1 - np.linspace(1e-4, 0.02, steps)))  # the same beta_1 and beta_T
    m = signal * x_0.item()
    v = 1 - signal**2
    by_hand = 0.5 * (v + m**2 - 1 - np.log(v))  # KL(N(m, v) || N(0, 1))
    kls.append(prior_kl(x_0, linear(int(steps))).item())
    lesson.equal(
        f"T = {steps}: 1/2 (v + m^2 - 1 - log v) = prior_kl", by_hand, kls[-1], within=1e-12
    )

ts = np.arange(T + 1)
chains = np.full((8, T + 1), x_0.item())
for t in range(1, T + 1):
    chains[:, [t]] = q_step(chains[:, [t - 1]], t, rng.standard_normal((8, 1)), schedule)
lines = [draw.Series("" if i else "chains", ts, chains[i], draw.EXACT, 0.6) for i in range(8)]
lines += [draw.Series("", ts, mean + k * np.sqrt(var), draw.MODEL, 1.4) for k in (-2, 2)]
lines += [draw.Series("mean, and two deviations around it", ts, mean, draw.MODEL, 2.4)]
kl = [draw.Series("", Ts, np.array(kls), draw.DATA, 2.0)]
T_axis, kl_axis = "number of steps T", "KL(q(x_{T} | x_{0}) || N(0, 1)) in nats"
draw.board(
    "out/lessons/01.png",
    [
        draw.View("Eight chains from x_{0} = 1.5", lines, "step t", "x_{t}"),
        draw.View("What is left of x_{0} at T", kl, T_axis, kl_axis, log_x=True, log_y=True),
    ],
    "Left: every chain forgets where it began. At each t the chains are spread as the Gaussian of "
    "mean signal_{t} x_{0} and variance noise_{t}^{2}, which needs no chain to be computed. Right: "
    "beta runs from 0.0001 to 0.02 whatever T is. With few such steps x_{T} still tells x_{0}, and "
    "a sampler that starts from N(0, 1) is wrong before its first step.",
    height=300,
)
print("out/lessons/01.png")

# Change this, and see:
#   schedule = linear(T=50)      alpha_bar_T is 0.6: the chains at T are not N(0, 1)
#   b = beta[t]                  variance after t steps DISAGREES: a variance for a deviation
#   eps drawn once for all t     the variance of the chains is off by thousands of standard errors
