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
    v = var + noise**2
    squares = ((x[:, None] - means[:, : x.shape[1]]) ** 2).sum(axis=2)
    return np.log(np.exp(-squares / (2 * v)) @ weights / (2 * np.pi * v) ** (x.shape[1] / 2))


def langevin(step, score):  # the density of x' = x + step/2 score + sqrt(step) z, times dx: (x', x)
    return np.exp(normal.log_prob(grid, (grid + step / 2 * score)[:, 0], step)) * dx


print("The score is the gradient of log q(x_t): central differences along each axis, on a lattice")
square, views, h = (-2, 2, -2, 2), [], 1e-5
lattice = draw.lattice(square, 14)
for noise in schedule.noise[[9, 5, 1]]:
    v, arrows = var + noise**2, data.score(lattice, 1.0, noise)
    moves = h * np.eye(2)
    slopes = [(log_q(lattice + d, noise) - log_q(lattice - d, noise)) / (2 * h) for d in moves]
    error = h**2 / 60 * (2 / v) ** 3 + 1e-8  # h^2/6 f''', |f'''| < 0.1 (2/v)^3, and rounding / h
    lesson.equal(f"noise {noise:.2f}: grad log q(x_t)", np.transpose(slopes), arrows, within=error)
    draws = data.sample(2000, rng) + noise * rng.standard_normal((2000, 2))
    marks = [draw.Dots("x_{t}", draws, draw.DATA, 0.3)]
    marks += [draw.Arrows("score", lattice, arrows, 2 / v)]
    views.append(draw.View(f"Noise {noise:.2f}", marks, "first coordinate", extent=square))

print("The score of q(x_t) is the mean of that of q(x_t | x_0) over all x_0 that x_t may come from")
x_t, dx_t = np.linspace(-5, 5, 401)[:, None], 10 / 400  # (401, 1)
x_0, dx_0 = np.linspace(-3, 3, 601), 6 / 600  # (601,)
noise_5 = schedule.noise[5]
log_joint = normal.log_prob(x_t, x_0, noise_5**2) + log_q(x_0[:, None], 0.0)  # (401, 601)
joint = np.exp(log_joint) * dx_0
q_t = joint.sum(axis=1, keepdims=True)  # q(x_t), and joint / q_t = p(x_0 | x_t), by Bayes
target = -(x_t - x_0) / noise_5**2  # grad log q(x_t | x_0) = -eps / noise; joint target: grad joint
score_t = (joint * target).sum(axis=1, keepdims=True) / q_t  # grad q / q = E[target | x_t]
from_eps = score_from_eps(x_t, 5, line.predictor(schedule)(x_t, 5), schedule)
lesson.equal("E[-eps / noise | x_t] = score", score_t, line.score(x_t, 1.0, noise_5))
lesson.equal("  = score_from_eps of the best predictor", score_t, from_eps)
mean_0 = (joint * x_0).sum(axis=1, keepdims=True) / q_t  # x_0 = x_t + noise^2 target, on average:
tweedie = x_t + noise_5**2 * line.score(x_t, 1.0, noise_5)
lesson.equal("Tweedie: E[x_0 | x_t] = x_t + noise^2 score", mean_0, tweedie)
hat = -x_t / (1 + noise_5**2)  # any guess; since E[target - score | x_t] = 0, the squares add up:
loss = (joint * (hat - target) ** 2).sum() * dx_t
gap = (joint * (hat - score_t) ** 2).sum() * dx_t
rest = (joint * (score_t - target) ** 2).sum() * dx_t
lesson.equal("E|hat - target|^2 = E|hat - score|^2 + rest", loss, gap + rest)

print("So a network learns it by that loss: NCSN's, hat = out / sigma, is DDPM's, eps_hat = -out")
ddpm, t = linear(), rng.integers(1, 1001, 64)
points, eps, out = rng.standard_normal((3, 64, 2))  # x_0, its noise, the network's output
ncsn = Schedule(np.ones(1001), ddpm.noise / ddpm.signal)  # of x_t / signal: the same levels
sigma = ncsn.noise[t][:, None]
by_hand = sigma**2 / 2 * (out / sigma + eps / sigma) ** 2
loss_dsm, grad_dsm = dsm(out, points, t, eps, ncsn)
loss_eps, grad_eps = l_simple(-out, points, t, eps, ddpm)
lesson.equal("sigma^2/2 |hat - target|^2 = dsm", by_hand.mean(axis=1), loss_dsm)
lesson.equal("2 dsm = l_simple", 2 * loss_dsm, loss_eps)
lesson.equal("and 2 grad dsm = -grad l_simple", 2 * grad_dsm, -grad_eps)

print("Langevin: x + step/2 score + sqrt(step) z leaves q as it is, up to order step^2")
# The noise spreads q by step/2 q'', the drift carries it by -step/2 (q score)', and q score = q'.
score_5, q_5 = line.score(grid, 1.0, noise_5), np.exp(log_q(grid, noise_5))
change = [np.abs(langevin(step, score_5) @ q_5 - q_5).sum() for step in (0.02, 0.01, 0.005)]
ratio, finer = change[0] / change[1], change[1] / change[2]  # each is 4 + c step
lesson.equal("half the step, a quarter of the change", finer, 4.0, within=2 * abs(ratio - finer))

print("On N(0, v) the score is -x/v: a step is a x + sqrt(step) z, with a = 1 - step/(2 v)")
noise_1 = schedule.noise[1]
v, narrow = var + noise_1**2, Schedule(np.ones(2), np.array([0.0, noise_1]))  # this level alone
measured = {}  # variance / v for each step / v
for share in (0.1, 0.5, 1.0, 2.0):
    x = np.sqrt(4 * v) * rng.standard_normal((20_000, 1))
    V, a = 4 * v, 1 - share / 2  # V = Var[x]
    for last in annealed_langevin(lambda x, t: -x / v, x, narrow, rng, share * v, steps=60):
        V = a**2 * V + last.step  # Var[a x + sqrt(step) z], since z is independent of x
    measured[share] = last.x_next.var() / v
    fixed = share * v / (1 - a**2)  # where V = a^2 V + step
    lesson.equal(f"step = {share} v: fixed point = v/(1 - step/(4v))", fixed, v / (1 - share / 4))
    lesson.equal("after 60 steps: v variance_ratio", V, v * variance_ratio(share, 2.0, 60))
    lesson.equal("variance of 20,000 chains", last.x_next.var(), V, V * np.sqrt(2 / len(x)))

print("Modes' weights: under little noise the score near a mode is that mode's own")
near = grid[abs(abs(grid[:, 0]) - 1) <= 0.5]
# The other mode's share of q is at most the ratio of weights, 0.8 / 0.2, times the ratio of the
# modes' densities at 1.5 and at 0.5 from the mode; and its pull is 2 / v off this mode's.
other = 0.8 / 0.2 * np.exp(-(1.5**2 - 0.5**2) / (2 * v)) * 2 / v
score_near, score_even = line.score(near, 1.0, noise_1), even.score(near, 1.0, noise_1)
lesson.equal("score with weights 0.5, 0.5 = with 0.8, 0.2", score_even, score_near, within=other)
n, epsilon = 6000, 0.2 * noise_1**2
x_T = 2.4 * rng.standard_normal((n, 2))
kernels = [  # for each level, by a step of Algorithm 1
    langevin(0.2 * noise**2, line.score(grid, 1.0, noise)) for noise in schedule.noise[1:]
]
for name, levels, steps in (("Noise 0.15 alone", narrow, 270), ("Nine levels", schedule, 30)):
    q = np.exp(normal.log_prob(grid, 0.0, 2.4**2))  # of the first coordinate of x_T
    for last in annealed_langevin(
        lambda x, t: data.score(x, 1.0, schedule.noise[t]), x_T, levels, rng, epsilon, steps
    ):
        q = kernels[last.t - 1] @ q  # and of x_next: what the chains should do, exactly
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
#   for share in (0.1, 1.0, 3.9)          at 3.9 v it is 40 v; from 4 v on it grows without end
#   ("Nine levels", schedule, 100)        the share is off by 0.012 only; with 10 steps, by 0.076
