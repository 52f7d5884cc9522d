"""Why does the loss not go to 0, and when is training finished?

Many pairs (x_0, eps) make the same x_t, and the network is given x_t alone. Its best answer is the
mean E[eps | x_t]. Their spread around it is the irreducible loss, the trace of Cov[eps | x_t], and
training can only reduce the rest, the excess |eps_hat - E[eps | x_t]|^2. Without an exact answer,
compare row by row on one held-out set, t and eps fixed, until a longer run gains nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

from functools import partial

import numpy as np

from npdiff import exact, normal
from npdiff.forward import eps_from_x_0, q_sample
from npdiff.loss import l_simple
from npdiff.nn import mlp
from npdiff.reverse import predictor
from npdiff.schedule import linear
from npdiff.train import start, train, update

rng = np.random.default_rng(0)
roll = exact.SwissRoll(noise=0.5)
schedule = linear(T=1000)
best = roll.predictor(schedule)  # E[eps | x_t], exactly

print("Every x_0 can have made this x_t, with an eps of its own. Some are likelier, given x_t")
n = 100_000
t = 150
signal, noise = schedule.signal[t], schedule.noise[t]
x_0 = roll.sample(n, rng, np.float64)
x_t = np.tile([1.1, 0.1], (n, 1))  # one x_t for every x_0
eps = eps_from_x_0(x_t, t, x_0, schedule)
lesson.equal("signal x_0 + noise eps = x_t", signal * x_0 + noise * eps, x_t)
# Bayes: p(x_0 | x_t) = p(x_0) q(x_t | x_0) / q(x_t). The draws of x_0 stand for p(x_0), and so
# q(x_t), which is the mean of q(x_t | x_0) over x_0, is the mean over the draws.
q_given_x_0 = np.exp(normal.log_prob(x_t, signal * x_0, noise**2).sum(axis=1))  # (n,)
q = np.exp(roll.log_prob(x_t[:1], signal, noise))[0]
error = q_given_x_0.std() / np.sqrt(n)
lesson.equal("E[q(x_t | x_0)] = q(x_t)", q_given_x_0.mean(), q, error=error)
p = q_given_x_0 / q_given_x_0.sum()  # (n,)   the probability of each draw, given x_t
some = rng.choice(n, size=6, p=p)
for i in some:
    x, e = x_0[i].round(2), eps[i].round(2)
    times = n * p[i]  # before x_t is known each of the n draws has the probability 1 / n
    print(f"  x_0 = {x} and eps = {e}: given x_t {times:.2g} times as likely as before")

print("The best single answer is their mean, E[eps | x_t]. It misses them by their spread")
mean = p @ eps
spread = ((eps - mean) ** 2).mean(axis=1)  # (n,)   the squared error per coordinate of each eps
g = np.array([0.3, -0.2])  # any other answer; 2 (mean - g) E[eps - mean], the cross term, is 0
left = p @ ((eps - g) ** 2).mean(axis=1)
right = p @ spread + ((mean - g) ** 2).mean()
lesson.equal("E|eps - g|^2 = spread + |mean - g|^2", left, right)
error = np.sqrt(p**2 @ (eps - mean) ** 2)  # the standard error of a mean with weights p
lesson.equal("sum of p eps = E[eps | x_t]", mean, best(x_t[:1], t)[0], error=error)
error = np.sqrt(p**2 @ (spread - p @ spread) ** 2)
irreducible = roll.irreducible_loss(x_t[:1], t, schedule)[0]
lesson.equal("trace Cov[eps | x_t] / d = irreducible_loss", p @ spread, irreducible, error=error)

print("Over all t and x_t, the perfect predictor still has a loss: the mean of the irreducible one")
m = 4000  # the held-out set: its t and eps are drawn once and stay
x_0_held = roll.sample(m, rng, np.float64)
t_held = rng.integers(1, schedule.T + 1, m)
eps_held = rng.standard_normal((m, 2))
x_t_held = q_sample(x_0_held, t_held, eps_held, schedule)
eps_star = best(x_t_held, t_held)
floor = roll.irreducible_loss(x_t_held, t_held, schedule)
perfect, _ = l_simple(eps_star, x_0_held, t_held, eps_held, schedule)
error = (perfect - floor).std() / np.sqrt(m)
lesson.equal("loss of the perfect predictor", perfect.mean(), floor.mean(), error=error)

steps, every, batch = 1500, 100, 256
print(f"A network, judged after every {every} steps: loss = irreducible + excess")
state = start(mlp.init(rng))
losses, held, excess, cross = [], [], [], []
at_rate = partial(update, lr=5e-3)  # the rate falls from here to 0 at the last step
for step in train(mlp, state, roll.sample, schedule, rng, steps, batch, update=at_rate):
    losses.append(float(step.loss))
    if step.step % every == 0:
        eps_hat = predictor(mlp, state, schedule)(x_t_held, t_held)
        held.append(l_simple(eps_hat, x_0_held, t_held, eps_held, schedule)[0])
        excess.append(((eps_hat - eps_star) ** 2).mean(axis=1))
        cross.append(2 * ((eps_hat - eps_star) * (eps_star - eps_held)).mean(axis=1))
held = np.array(held)  # (15, m)   a row for each time that the network is judged
excess = np.array(excess)
cross = np.array(cross)
lesson.equal("|eps_hat - eps|^2 in three parts", held, perfect + excess + cross)
# Given x_t, eps_hat - eps_star is one number and eps_star - eps has mean 0, so the product has too.
error = cross.std(axis=1) / np.sqrt(m)
lesson.equal("E[cross] = 0", cross.mean(axis=1), 0 * error, error=error)

print(f"Without the exact answer: the held-out loss, by rows, against that of {every} steps before")
change = np.diff(held, axis=0)  # (14, m)
true_change = np.diff(excess, axis=0)
error = (change - true_change).std(axis=1) / np.sqrt(m)
seen = change.mean(axis=1)
true = true_change.mean(axis=1)
lesson.equal("change of the loss = change of the excess", seen, true, error=error)
losses = np.array(losses).reshape(-1, every)  # (15, 100)   of each batch
training = losses.mean(axis=1)
raw = np.diff(training)
paired_error = change.std(axis=1) / np.sqrt(m)
at = every * np.arange(1, len(held) + 1)
print("  step    training loss    held-out loss    its change, by rows      excess")
for k in range(1, len(held)):
    row = at[k], training[k], held[k].mean(), seen[k - 1], paired_error[k - 1], excess[k].mean()
    print("{:6}{:17.4f}{:17.4f}{:+16.4f} +-{:.4f}{:12.4f}".format(*row))
alone = losses[-1].std() / every**0.5, held[-1].std() / m**0.5  # without pairs
print("  the losses' own errors: {:.4f} and {:.4f}".format(*alone))
print(f"  the training loss rises {(raw > 0).sum()} times, the excess {(true > 0).sum()} times")
# The last changes are small also because the rate falls to 0, and at rate 0 every loss stays as it
# is. So compare with a longer run, as below, before you call the training finished.
origins = [
    draw.Dots("signal x_{0}", signal * x_0[:3000], draw.EXACT, 0.5, 0.8),
    draw.Dots("given x_{t}", signal * x_0[rng.choice(n, 600, p=p)], draw.MODEL, 0.5),
    *[draw.Series("", *np.stack([signal * x_0[i], x_t[i]]).T, draw.INK, 1.0) for i in some],
]
curves = [
    draw.Series("training", np.arange(1, steps + 1), losses.ravel(), draw.EXACT, 0.6),
    draw.Series("held-out", at, held.mean(axis=1), draw.MODEL, 2.0),
    draw.Series("best", at, 0 * at + perfect.mean(), draw.DATA, 2.0),
]
changes = [
    draw.Series("training", at[1:], raw, draw.EXACT),
    draw.Series("excess", at[1:], true, draw.DATA, 4.0),
    draw.Series("held-out", at[1:], seen, draw.MODEL),
]
draw.board(
    "out/lessons/06.png",
    [
        draw.View("One x_{t}, many x_{0}", origins, "first coordinate", "second coordinate"),
        draw.View("Losses", curves, "step", "loss", extent=(0, steps, 0.15, 0.4)),
        draw.View(f"In {every} steps", changes, "step", "change", extent=(0, steps, -0.015, 0.015)),
    ],
    "Left: six of the pairs that make one x_{t}, each line a noise eps; orange are draws of x_{0} "
    "given x_{t}. Middle: the loss of the batches, and of the held-out rows, which nears the best. "
    "Right: compared row by row, the held-out loss shows how the excess falls. The training loss, "
    f"averaged over {every} batches, is too noisy for that.",
    columns=3,
)
print("out/lessons/06.png")

# Change this, and see:
#   t = 600 for 150           trace Cov[eps | x_t] / d is 0.026: x_t is nearly eps itself
#   6000, 400 for 1500, 100   the longer run gains: held-out loss 0.243, excess 0.0009, not 0.0052
#   and lr=5e-3, hold=0.9999  the rate stays: so does the loss from step 2800, at an excess of 0.002
