"""beta or beta_tilde: which variance should a reverse step have?

Neither, in general. Given x_t, two things about x_{t-1} are unknown: eps, and the noise that is
left when eps is known, of variance beta_tilde. The best variance is the sum of both parts,
beta_tilde + mean_per_eps^2 loss. For a point the loss is 0, which leaves beta_tilde. For data
N(0, 1) the sum is beta, and for all other data of variance 1 it lies between the two.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from lab.metrics import distance_to_curve
from npdiff import exact, normal
from npdiff.forward import prior_kl, q_posterior, q_sample, x_0_from_eps
from npdiff.likelihood import best_variance, terms_from_loss, variance_table
from npdiff.reverse import mean_per_eps, p_mean_from_eps
from npdiff.sampler import ddpm
from npdiff.schedule import cosine

rng = np.random.default_rng(0)
schedule = cosine(T=20)  # few steps, so that the choice matters
T, ts = schedule.T, np.arange(1, schedule.T + 1)
s = np.linspace(0, 1.5, 31)  # data N(0, s^2), a column for each s; s = 0 is a point
half, one = 10, 20  # the columns of s = 1/2 and s = 1
signal, noise = schedule.signal[:, None], schedule.noise[:, None]  # a row for each t = 0..T
alpha, beta = schedule.alpha[1:, None], schedule.beta[1:, None]  # a row for each t = 1..T
v = signal**2 * s**2 + noise**2  # (T + 1, 31): x_t ~ N(0, v)

print("Bayes for data N(0, s^2): x_{t-1} ~ N(0, v_prev), and x_t = sqrt(alpha) x_{t-1} + ...")
precision = 1 / v[:-1, 1:] + alpha / beta  # of x_{t-1} before x_t is seen, and what x_t adds
best = beta * v[:-1] / v[1:]  # (T, 31): the same, since v_t = alpha v_prev + beta
lesson.equal("1 / (1/v_prev + alpha/beta) = beta v_prev / v", 1 / precision, best[:, 1:])
gaussian = exact.Gaussian(0 * s[1:], np.diag(s[1:] ** 2))  # a coordinate for each s
covs = [gaussian.reverse_step(0 * s[None, 1:], int(t), schedule)[1][0] for t in ts]
book = np.array([np.diag(cov) for cov in covs])
lesson.equal("  the same in the book: reverse_step", book, best[:, 1:])

print("Its two parts: x_t and eps together give x_0, and given x_0 the step is q_posterior")
x_t, eps = rng.standard_normal((2, T, 1))
mean_0, _ = q_posterior(x_0_from_eps(x_t, ts, 0 * eps, schedule), x_t, ts, schedule)
mean_1, beta_tilde = q_posterior(x_0_from_eps(x_t, ts, eps, schedule), x_t, ts, schedule)
w = mean_per_eps(ts, schedule)[:, None]
lesson.equal("the mean moves by mean_per_eps eps", mean_1 - mean_0, w * eps)
var_eps = 1 - noise[1:] ** 2 / v[1:]  # Var[eps | x_t] = 1 - Cov[eps, x_t]^2 / Var[x_t]
lesson.equal("beta_tilde + mean_per_eps^2 Var[eps | x_t]", beta_tilde + w**2 * var_eps, best)
lesson.equal("s = 0, where Var[eps | x_t] = 0: beta_tilde", best[:, [0]], beta_tilde)
lesson.equal("s = 1, where it is signal^2: beta", best[:, [one]], beta)
lesson.equal("s = infinity, where it is 1: beta / alpha", beta_tilde + w**2, beta / alpha)
# On any data of variance 1, noise_t x_t predicts eps with the loss signal^2. A perfect predictor
# has no larger loss, so the sum is at most beta.

print("The bound, in nats: another variance than the best adds KL(N(0, best) || N(0, var)) >= 0")
tables = {name: variance_table(name, schedule) for name in ("beta_tilde", "beta")}
losses = np.vstack([0 * s, var_eps]).T[1:]  # (30, T + 1), without s = 0: a point has no bound
best_terms = [terms_from_loss(row, schedule, best_variance(row, schedule)) for row in losses]
L_T = prior_kl(s[1:, None], schedule)  # its mean over the data: it is linear in x_0^2
best_bound, entropy = L_T + np.sum(best_terms, axis=1), normal.entropy(s[1:] ** 2)
above = {"best": best_bound - entropy}  # for each s; in the tables beta_tilde_1 = 0 is beta_1
for name, table in tables.items():
    terms = np.array([terms_from_loss(row, schedule, table) for row in losses])
    kl = np.pad(normal.kl(0.0, best[:, 1:].T, 0.0, table[1:]), [(0, 0), (1, 0)])  # 0 at t = 0
    lesson.equal(f"{name}: L_{{t-1}} = best L_{{t-1}} + KL", terms, best_terms + kl)
    above[name] = L_T + terms.sum(axis=1) - entropy
kl_T = normal.kl(0.0, v[-1, 1:], 0.0, 1.0)  # q(x_T), where a sampler takes N(0, 1)
lesson.equal("best: bound = entropy + KL(q(x_T) || N(0, 1))", best_bound, entropy + kl_T)
roll, loss = exact.SwissRoll(), np.zeros(T + 1)
for t in range(1, T + 1):
    x_t = q_sample(roll.sample(2000, rng), t, rng.standard_normal((2000, 2)), schedule)
    loss[t] = roll.irreducible_loss(x_t, t, schedule).mean()
tables["best"] = best_variance(loss, schedule)
roll_L_T = -np.log(schedule.noise[T])  # the mean of prior_kl a coordinate, as E x_0^2 = 1
print("  bound - entropy      N(0, 1/4)   N(0, 1)      roll")
for name, table in tables.items():
    of_roll = roll_L_T + terms_from_loss(loss, schedule, table).sum() - roll.entropy() / 2
    of_half, of_one = np.abs(above[name][[half - 1, one - 1]])  # never below 0 but by rounding
    print(f"    {name:16}{of_half:12.3f}{of_one:10.3f}{of_roll:10.3f}")

print("Samples: a step of ddpm is x_{t-1} = m x_t + sigma z, so Var becomes m^2 Var + sigma^2")
m = p_mean_from_eps(np.ones_like(best), ts, noise[1:] / v[1:], schedule)  # the mean at x_t = 1
lesson.equal("sigma^2 = best: m^2 v + best = v_prev", m**2 * v[1:] + best, v[:-1])
n, x_T, roll_T = 20_000, rng.standard_normal((20_000, len(s))), rng.standard_normal((2000, 2))
spread, clouds = {}, {"data": roll.sample(2000, rng)}
for name in ("beta_tilde", "beta"):
    var = np.ones_like(s)  # Var[x_T]
    for t in range(T, 1, -1):  # down to x_1: the last step adds no noise
        var = m[t - 1] ** 2 * var + tables[name][t]
    # E[eps | x_t] = Cov[eps, x_t] / Var[x_t] x_t; for a point, which is at 0, eps = x_t / noise
    for step in ddpm(lambda x_t, t: schedule.noise[t] / v[t] * x_t, x_T, schedule, rng, name):
        x_1 = step.x_t
    error = var * (2 / n) ** 0.5
    lesson.equal(f"{name}: Var[x_1] of draws by ddpm", x_1.var(axis=0), var, error)
    spread[name] = var / v[1]
    point, of_half, of_one = spread[name][[0, half, one]]
    print(f"    / the data's: point {point:.3f}, N(0, 1/4) {of_half:.3f}, N(0, 1) {of_one:.3f}")
    *_, step = ddpm(roll.predictor(schedule), roll_T, schedule, rng, name)
    clouds[name] = step.x_prev
rms = {name: (distance_to_curve(x, roll) ** 2).mean() ** 0.5 for name, x in clouds.items()}
print("  the roll, rms distance to its curve:", *[f"{name} {rms[name]:.3f} " for name in rms])

colors = {"beta_tilde": draw.MODEL, "beta": draw.DATA, "best": draw.INK, "data": draw.EXACT}
share = {name: table[2:] / beta[1:, 0] for name, table in tables.items()}
views = []
for title, x, lines, xlabel, ylabel in (
    ("Variance of a step, the roll", ts[1:], share, "step t", "variance / beta_{t}"),
    ("Bound for N(0, s^{2})", s[1:], above, "s", "bound \u2212 entropy, nats"),
    ("Samples of N(0, s^{2})", s, spread, "s", "Var[x_{1}] / that of the data"),
):
    marks = [draw.Series(name, x, y, colors[name], 2.0) for name, y in lines.items()]
    views += [draw.View(title, marks, xlabel, ylabel)]
around = draw.square_around(clouds["beta"])
for name, x in clouds.items():
    views += [draw.View(f"The roll: {name}", [draw.Dots("", x, colors[name])], extent=around)]
draw.board(
    "out/lessons/07.png",
    views,
    "Above: beta_tilde is too small at small t and costs about a nat a coordinate, and beta "
    "little; for very narrow data beta costs more. The spread of samples is right with beta_tilde "
    "for a point, s = 0, and with beta for s = 1. Below: the roll in 20 steps of a perfect "
    "predictor. With beta_tilde it is too thin; with beta more points lie off it.",
    columns=3,
)
print("out/lessons/07.png")

# Change this, and see:
#   schedule = cosine(T=200)     takes 20 s: beta costs the roll 0.03 nats, beta_tilde still 0.53
#   s = np.linspace(0, 3, 61)    beyond s = 1 even beta is too small: it costs 0.09 nats at s = 3
