"""What is the score, and how do Langevin dynamics draw with it?

The score, the gradient of log q(x_t), is the mean of -eps/noise over all x_0 behind x_t: an arrow
towards denser data. Langevin dynamics go half a step along it and add noise, until the points are
spread as q. It does not show the weights of modes far apart, so they begin where noise joins them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff import exact, normal
from npdiff.forward import score_from_eps
from npdiff.loss import l_simple
from npdiff.papers.ncsn import annealed_langevin, dsm, ladder, variance_ratio
from npdiff.schedule import Schedule, linear

rng = np.random.default_rng(0)
weights, means, var = np.array([0.8, 0.2]), np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.15**2
data = exact.Mixture(weights, means, np.tile(var * np.eye(2), (2, 1, 1)))  # two modes in the plane
line = exact.Mixture(weights, means[:, :1], np.full((2, 1, 1), var))  # their first coordinate
even = exact.Mixture([0.5, 0.5], means[:, :1], np.full((2, 1, 1), var))  # and with other weights
schedule = ladder(L=9, sigma_L=0.15, sigma_1=2.4)  # x_t = x_0 + noise_t eps
grid, dx = np.linspace(-16, 16, 641)[:, None], 32 / 640  # integrals are sums times dx


def log_q(x, noise):  # of x_t = x_0 + noise eps, where noise^2 adds to the variance of each mode
    v, squares = var + noise**2, ((x[:, None] - means[:, : x.shape[1]]) ** 2).sum(axis=2)
    return np.log(np.exp(-squares / (2 * v)) @ weights / (2 * np.pi * v) ** (x.shape[1] / 2))


def langevin(step, score):  # the density of x' = x + step/2 score + sqrt(step) z, times dx: (x', x)
    return np.exp(normal.log_prob(grid, (grid + step / 2 * score)[:, 0], step)) * dx


print("The score is the gradient of log q(x_t): central differences along each axis, on a lattice")
x, square, views, h = draw.lattice((-2, 2, -2, 2), 14), (-2, 2, -2, 2), [], 1e-5
for noise in schedule.noise[[9, 5, 1]]:
    v, score = var + noise**2, data.score(x, 1.0, noise)
    slopes = [(log_q(x + d, noise) - log_q(x - d, noise)) / (2 * h) for d in h * np.eye(2)]
    error = h**2 / 60 * (2 / v) ** 3 + 1e-8  # h^2/6 f''', |f'''| < 0.1 (2/v)^3, and rounding / h
    lesson.equal(f"noise {noise:.2f}: grad log q(x_t)", np.transpose(slopes), score, within=error)
    x_t = data.sample(2000, rng) + noise * rng.standard_normal((2000, 2))
    marks = [draw.Dots("x_{t}", x_t, draw.DATA, 0.3), draw.Arrows("score", x, score, 2 / v)]
    views.append(draw.View(f"Noise {noise:.2f}", marks, "first coordinate", extent=square))

print("The score of q(x_t) is the mean of that of q(x_t | x_0) over all x_0 that x_t may come from")
noise, x_t, x_0 = schedule.noise[5], np.linspace(-5, 5, 401)[:, None], np.linspace(-3, 3, 601)
joint = np.exp(normal.log_prob(x_t, x_0, noise**2) + log_q(x_0[:, None], 0.0)) / 100  # times dx_0
q = joint.sum(axis=1, keepdims=True)  # q(x_t), and joint / q = p(x_0 | x_t), by Bayes
target = -(x_t - x_0) / noise**2  # grad log q(x_t | x_0) = -eps / noise, and joint target its grad
score = (joint * target).sum(axis=1, keepdims=True) / q  # grad q / q = E[target | x_t]
from_eps = score_from_eps(x_t, 5, line.predictor(schedule)(x_t, 5), schedule)
hat = -x_t / (1 + noise**2)  # any guess; since E[target - score | x_t] = 0, the squares add up:
loss, gap, rest = ((joint * d**2).sum() / 40 for d in (hat - target, hat - score, score - target))
lesson.equal("E[-eps / noise | x_t] = score", score, line.score(x_t, 1.0, noise))
lesson.equal("  = score_from_eps of the best predictor", score, from_eps)
lesson.equal("E|hat - target|^2 = E|hat - score|^2 + rest", loss, gap + rest)

print("So a network learns it by that loss: NCSN's, hat = out / sigma, is DDPM's, eps_hat = -out")
ddpm, t, (x_0, eps, out) = linear(), rng.integers(1, 1001, 64), rng.standard_normal((3, 64, 2))
ncsn = Schedule(np.ones(1001), ddpm.noise / ddpm.signal)  # of x_t / signal: the same levels
sigma = ncsn.noise[t][:, None]
by_hand = sigma**2 / 2 * (out / sigma + eps / sigma) ** 2
loss, grad = dsm(out, x_0, t, eps, ncsn)
loss_eps, grad_eps = l_simple(-out, x_0, t, eps, ddpm)
lesson.equal("sigma^2/2 |hat - target|^2 = dsm", by_hand.mean(axis=1), loss)
lesson.equal("2 dsm = l_simple", 2 * loss, loss_eps)
lesson.equal("and 2 grad dsm = -grad l_simple", 2 * grad, -grad_eps)

print("Langevin: x + step/2 score + sqrt(step) z leaves q as it is, up to order step^2")
# The noise spreads q by step/2 q'', the drift carries it by -step/2 (q score)', and q score = q'.
score, q = line.score(grid, 1.0, noise), np.exp(log_q(grid, noise))
change = [np.abs(langevin(step, score) @ q - q).sum() for step in (0.02, 0.01, 0.005)]
ratio, finer = change[0] / change[1], change[1] / change[2]  # each is 4 + c step
lesson.equal("half the step, a quarter of the change", finer, 4.0, within=2 * abs(ratio - finer))

print("On N(0, v) the score is -x/v: a step is a x + sqrt(step) z, with a = 1 - step/(2 v)")
n, noise, measured = 20_000, schedule.noise[1], {}  # variance / v for each step / v
v, narrow = var + noise**2, Schedule(np.ones(2), np.array([0.0, noise]))  # the last level alone
for share in (0.1, 0.5, 1.0, 2.0):
    x, V, a = np.sqrt(4 * v) * rng.standard_normal((n, 1)), 4 * v, 1 - share / 2
    for last in annealed_langevin(lambda x, t: -x / v, x, narrow, rng, share * v, steps=60):
        V = a**2 * V + last.step  # Var[a x + sqrt(step) z], since z is independent of x
    measured[share] = last.x_next.var() / v
    fixed = share * v / (1 - a**2)  # where V = a^2 V + step
    lesson.equal(f"step = {share} v: fixed point = v/(1 - step/(4v))", fixed, v / (1 - share / 4))
    lesson.equal("after 60 steps: v variance_ratio", V, v * variance_ratio(share, 2.0, 60))
    lesson.equal("variance of 20,000 chains", last.x_next.var(), V, V * np.sqrt(2 / n))

print("Weights: under little noise the score near a mode is that of the mode alone")
near = grid[abs(abs(grid[:, 0]) - 1) <= 0.5]
other = 4 * np.exp(-(1.5**2 - 0.5**2) / (2 * v)) * 2 / v  # the other mode's share, times its pull
score, score_even = line.score(near, 1.0, noise), even.score(near, 1.0, noise)
lesson.equal("score with weights 0.5, 0.5 = with 0.8, 0.2", score_even, score, within=other)
n, x_T, epsilon = 6000, 2.4 * rng.standard_normal((6000, 2)), 0.2 * noise**2
moves = [
    langevin(0.2 * s**2, line.score(grid, 1.0, s)) for s in schedule.noise[1:]
]  # by Algorithm 1
for name, levels, steps in (("Noise 0.15 alone", narrow, 270), ("Nine levels", schedule, 30)):
    q = np.exp(normal.log_prob(grid, 0.0, 2.4**2))  # of the first coordinate of x_T
    for last in annealed_langevin(
        lambda x, t: data.score(x, 1.0, schedule.noise[t]), x_T, levels, rng, epsilon, steps
    ):
        q = moves[last.t - 1] @ q  # and of x_next: what the chains should do, exactly
    mass, right = q[grid > 0].sum() * dx, last.x_next[:, 0] > 0
    error, moved = np.sqrt(mass * (1 - mass) / n), (right != (x_T[:, 0] > 0)).mean()
    lesson.equal(f"{name}: share of the right mode", right.mean(), mass, error)
    print(f"  off its weight by {mass - 0.2:.3f}; {moved:.0%} of the chains changed sides")
    marks = [draw.Dots("", last.x_next, draw.MODEL, 0.2)]
    views.append(draw.View(f"{name}: {right.mean():.2f}", marks, "first coordinate", extent=square))

at = np.linspace(0, 2.5, 100)
curve = draw.Series("1 / (1 - step / 4v)", at, 1 / (1 - at / 4), draw.EXACT, 4.0)
dots = draw.Dots("chains", np.array([*measured.items()]), draw.MODEL, 1.0, 4.0)
views.append(draw.View("Variance / v, where q is N(0, v)", [curve, dots], "step / v"))
draw.board(
    "out/lessons/11.png",
    views,
    "Above: x_{t} and the score, its arrows scaled to each panel. Below: where 6,000 chains from "
    "N(0, 2.4^{2} I) end, and their share on the right (of the data: 0.20); and a step's own bias.",
    columns=3,
)
print("out/lessons/11.png")

# Change this, and see:
#   for share in (0.1, 1.0, 3.9)          the variance is 40 v; from 4 v on it grows without end
#   ("Nine levels", schedule, 100)        the share is off by 0.012 only; with 10 steps, by 0.076
