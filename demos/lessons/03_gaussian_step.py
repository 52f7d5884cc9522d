"""Why is one Gaussian enough for a step back, and when is it not?

q(x_{t-1} | x_t) is a narrow Gaussian, q(x_t | x_{t-1}), times q(x_{t-1}), which has any shape. Over
the width of a small step log q(x_{t-1}) is nearly a straight line, which moves the Gaussian and
leaves its shape: the KL from the best Gaussian falls as beta^3. With few steps beta is large, and
the shape of the data shows.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff import exact, normal
from npdiff.forward import q_sample
from npdiff.reverse import p_mean_from_score
from npdiff.schedule import cosine

rng = np.random.default_rng(0)
data = exact.Mixture([0.3, 0.7], [[-1.0], [1.0]], [[[0.05]], [[0.2]]])  # two bumps on a line
x_t = np.array([[0.1]])  # between the bumps
x = np.linspace(-6, 6, 24_001)[:, None]  # a grid: every x_{t-1} that x_t may have come from
dx = 12 / 24_000  # sums over the grid are integrals, exact to rounding: it is fine and wide
rows = []
for T in (640, 320, 160, 80, 40, 20):
    schedule = cosine(T)
    t = T // 2  # the same noise level at every T: only beta differs
    s = schedule.at(t, x_t)
    alpha, beta = s.alpha, s.beta
    a = alpha**0.5
    log_prior = data.log_prob(x, s.signal_prev, s.noise_prev)[:, None]  # log q(x_{t-1} = x)
    log_q = normal.log_prob(x_t, a * x, beta) + log_prior  # + log q(x_t | x_{t-1} = x)
    q_x_t = np.exp(log_q).sum() * dx
    log_q = log_q - np.log(q_x_t)  # log q(x_{t-1} = x | x_t), by Bayes' rule
    q = np.exp(log_q) * dx
    mean = (x * q).sum()
    var = ((x - mean) ** 2 * q).sum()
    skewness = ((x - mean) ** 3 * q).sum() / var**1.5
    kl = (q * (log_q - normal.log_prob(x, mean, var))).sum()  # from the best Gaussian
    kl_beta = (q * (log_q - normal.log_prob(x, mean, beta))).sum()  # from one of DDPM's variance
    score = data.score(x_t, s.signal, s.noise)  # of q(x_t)
    line = data.log_prob(x_t, s.signal, s.noise) + score * (x - x_t)
    bend = ((log_prior - line) ** 2 * q).sum() ** 0.5  # root mean square over the step
    rows.append((T, beta, bend, mean, var, kl_beta, kl, skewness))

print("One dimension, T = 20, t = 10: Bayes' rule on the grid, and what holds at any beta")
mean_q, cov_q = data.reverse_step(x_t, t, schedule)
lesson.equal("the integral = q(x_t)", q_x_t, np.exp(data.log_prob(x_t, s.signal, s.noise)))
lesson.equal("the mean = that of reverse_step", mean, mean_q)
lesson.equal("the variance = that of reverse_step", var, cov_q)
pull = (a * x - x_t) / beta  # d/dx_t log q(x_t | x_{t-1} = x). Its mean is d/dx_t log q(x_t):
lesson.equal("E[(a x_{t-1} - x_t)/beta | x_t] = score", (pull * q).sum(), score)
# Solved for E[x_{t-1} | x_t] this is Tweedie's formula, and also eq. (11), with the score in the
# place of -eps_hat / noise:
lesson.equal("mean = (x_t + beta score)/a", mean, p_mean_from_score(x_t, t, score, schedule))
# q(x_{t-1} | x_t) is exp(a x_t x_{t-1}/beta) times what holds no x_t, so d mean/dx_t = a/beta Var.
curvature = (data.irreducible_loss(x_t, t, schedule) - 1) / s.noise**2  # (log q)''(x_t)
lesson.equal("Var = beta/alpha (1 + beta (log q)'')", var, beta / alpha * (1 + beta * curvature))
lesson.equal("KL from N(mean, beta) = KL + normal.kl", kl_beta, kl + normal.kl(0.0, var, 0.0, beta))

print("Small beta: log q(x_{t-1}) is nearly a line, log q(x_t) + score (x_{t-1} - x_t)")
# On the left q is the density at t - 1; the line is the tangent at x_t to the density at t. The two
# densities differ by one small step. Complete the square: a Gaussian N times exp(score x) is c
# times the same Gaussian, moved by beta / alpha score. Here N is q(x_t | x_{t-1} = x).
log_N = normal.log_prob(x_t, a * x, beta)
log_moved = normal.log_prob(x_t, a * (x - beta / alpha * score), beta)
log_c = score * x_t / a + beta / (2 * alpha) * score**2  # holds no x
lesson.equal("log(N exp(score x)) = log(c N, moved)", log_N + score * x, log_c + log_moved)
print("     T    beta  line's error      mean  var/beta  KL in nats  T x KL: all T steps together")
for T, beta, bend, mean, var, _, kl, _ in rows:
    print(f"  {T:4d}  {beta:.4f}{bend:14.4f}{mean:10.6f}{var / beta:10.4f}{kl:12.1e}{T * kl:30.1e}")
T, beta, bend, mean, var, kl_beta, kl, skewness = np.array(rows).T
first_order = (x_t + beta / 2 * x_t + beta * score)[0]  # since 1/a = 1 + beta/2 + ...
powers = (
    ("the line's error", bend, 1.0),
    ("mean - (x_t + beta/2 x_t + beta score)", np.abs(mean - first_order), 2.0),
    ("Var - beta", np.abs(var - beta), 2.0),
    ("KL from N(mean, beta)", kl_beta, 2.0),
    ("KL from the best Gaussian", kl, 3.0),  # the square of the skewness, which is of order 3/2:
    ("KL - skewness^2/12", np.abs(kl - skewness**2 / 12), 4.0),
)
for what, error, power in powers:
    slope = np.diff(np.log(error)) / np.diff(np.log(beta))  # its limit at beta = 0 is the power
    # A slope's error halves with beta, so that of slope[0] is about slope[0] - slope[1].
    lesson.equal(f"slope of {what}", slope[0], power, within=2 * abs(slope[0] - slope[1]))

print("In the plane: the swiss roll, in 4, 10 and 40 steps of the cosine schedule")
roll = exact.SwissRoll(noise=0.5)
m = 100  # draws of x_t
views = []
for T, t in ((4, 1), (10, 2), (40, 10)):
    schedule = cosine(T)
    x_0 = roll.sample(m, rng, np.float64)
    eps = rng.standard_normal((m, 2))
    x_0[0] = roll.curve(np.array([10.0]))  # the point of the picture
    eps[0] = (1.0, 0.0)
    x_t = q_sample(x_0, t, eps, schedule)
    s = schedule.at(t, x_t)
    thick = np.hypot(s.signal_prev * roll.noise, s.noise_prev)  # the roll at t - 1
    reach = 2.1 * s.signal_prev + 8 * thick
    h = 0.68 * (s.alpha / s.beta + 1 / thick**2) ** -0.5  # fine enough for sums exact to rounding
    side = np.arange(-reach, reach, h)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)  # (N, 2)   each x_{t-1}
    log_prior = roll.log_prob(x, s.signal_prev, s.noise_prev)  # (N,)
    log_step = normal.log_prob(x_t[:, None], s.alpha**0.5 * x, s.beta).sum(axis=-1)  # (m, N)
    log_q = log_step + log_prior
    log_q = log_q - normal.log_sum_exp(log_q) - np.log(h**2)  # log q(x_{t-1} = x | x_t), by Bayes
    q = np.exp(log_q) * h**2
    mean_x = q @ x
    offset = x - mean_x[:, None]
    cov_x = np.einsum("in,inj,ink->ijk", q, offset, offset)
    # The best Gaussian g has this mean and covariance. Then E_q[log g] = -H[g]: KL = H[g] - H[q].
    entropy_g = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov_x)[1]
    entropy_q = -(q * log_q).sum(axis=1)
    nats = entropy_g - entropy_q
    mean_q, cov_q = roll.reverse_step(x_t, t, schedule)
    lesson.equal(f"T = {T}, t = {t}: the mean = reverse_step's", mean_x, mean_q)
    lesson.equal(f"T = {T}, t = {t}: the covariance = reverse_step's", cov_x, cov_q)
    print(f"  KL {nats[1:].mean():.4f} +- {nats[1:].std() / m**0.5:.4f} nats, averaged over x_t")
    drawn, _ = exact.reverse_draws(roll, x_t[0], t, schedule, 1500, rng)
    marks = [
        draw.Dots("draws of q(x_{t-1} | x_{t})", drawn),
        draw.ellipse("best Gaussian", mean_x[0], cov_x[0]),
        draw.ellipse("", mean_x[0], cov_x[0], deviations=2),
        draw.Dots("x_{t}", x_t[:1], draw.INK, 1, 4),
    ]
    title = f"T = {T}, t = {t}: KL {nats[0]:.4f} nats"
    extent = draw.square_around(drawn, 0.1, 0.1)
    views.append(draw.View(title, marks, "coordinate 1", "coordinate 2", extent=extent))

lost = [draw.Series("from the best Gaussian", beta, kl)]
lost += [draw.Series("from N(mean, beta)", beta, kl_beta, draw.DATA)]
views.append(draw.View("Two bumps on a line, t = T/2", lost, "beta_{t}", "KL in nats", True, True))
draw.board(
    "out/lessons/03.png",
    views,
    "The true step back from one x_{t} of the swiss roll, and the Gaussian of its mean and "
    "covariance, at 1 and 2 deviations. In 4 steps the arms of the roll show; in 40 the step is "
    "short (see the axes) and the Gaussian fits. Lower right: slopes of 3 and 2.",
)
print("out/lessons/03.png")

# Change this, and see:
#   exact.SwissRoll(noise=0.2)   a thinner roll: KL 1.7 nats in 4 steps, still 0.0007 in 40
#   x_t = np.array([[2.0]])      here q(x_t) is like one bump: KL 1.2e-06 at T = 20, not 4.2e-04
#   score of q(x_{t-1})          t - 1 for t: three lines DISAGREE
