"""eps, x_0, v or the score: which does the network predict, and does it matter?

x_t = signal x_0 + noise eps: once x_t is known, each of the four determines the others, and the
best predictor is one function in four units. The squared errors differ by a factor at each t, SNR
for eps, 1 for x_0, 1 + SNR for v, so training weighs the steps differently. An error of eps becomes
noise / signal times as large in x_0, one of v at most 1 times: where signal_T is 5e-5, predict v.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from lab.metrics import distance_to_curve
from npdiff import exact, forward
from npdiff.loss import l_simple, l_target
from npdiff.nn import mlp
from npdiff.output import PREDICT, eps_from_output, eps_per_output
from npdiff.sampler import ddim
from npdiff.schedule import cosine
from npdiff.train import gradient

rng = np.random.default_rng(0)
roll = exact.SwissRoll(noise=0.5)
schedule = cosine(T=1000)
T = schedule.T
n = 300
x_0 = roll.sample(n, rng, np.float64)
eps = rng.standard_normal((n, 2))
t = rng.integers(1, 901, n)  # one for each row; t = T has its own part below
signal = schedule.signal[t][:, None]
noise = schedule.noise[t][:, None]
x_t = forward.q_sample(x_0, t, eps, schedule)

print("x_t = signal x_0 + noise eps: given x_t, x_0 determines eps, and eps determines x_0")
lesson.equal("eps = (x_t - signal x_0) / noise", eps, forward.eps_from_x_0(x_t, t, x_0, schedule))
lesson.equal("x_0 = (x_t - noise eps) / signal", x_0, forward.x_0_from_eps(x_t, t, eps, schedule))

print("signal^2 + noise^2 = 1, so signal = cos(phi), noise = sin(phi): x_t is half of a rotation")
phi = np.arctan2(noise, signal)  # (x_t, v) is (x_0, eps) turned by phi, and v its other half
v = -np.sin(phi) * x_0 + np.cos(phi) * eps
lesson.equal("v = signal eps - noise x_0", v, forward.v_from_eps(x_t, t, eps, schedule))
lesson.equal("lengths stay: x_t^2 + v^2 = x_0^2 + eps^2", x_t**2 + v**2, x_0**2 + eps**2)
lesson.equal("turned back: x_0 = signal x_t - noise v", x_0, np.cos(phi) * x_t - np.sin(phi) * v)
lesson.equal("and eps = noise x_t + signal v", eps, forward.eps_from_v(x_t, t, v, schedule))

print("The score, the slope of log q:  log q(x_t | x_0) = c - |x_t - signal x_0|^2 / (2 noise^2)")
slope = -(x_t - signal * x_0) / noise**2
score = forward.score_from_eps(x_t, t, eps, schedule)
lesson.equal("score of q(x_t | x_0) = -eps / noise", slope, score)

print("A network is given x_t alone. The best it can say is the mean given x_t, in any unit")
eps_star = roll.predictor(schedule)(x_t, t)  # E[eps | x_t]
x_0_star = roll.denoiser(schedule)(x_t, t)  # E[x_0 | x_t], by the posterior of the roll's points
v_star = signal * eps_star - noise * x_0_star
lesson.equal("E[x_0 | x_t]", x_0_star, forward.x_0_from_eps(x_t, t, eps_star, schedule))
for predict, out in zip(PREDICT, (eps_star, x_0_star, v_star, -eps_star), strict=True):
    eps_hat = eps_from_output(x_t, t, out, schedule, predict)
    lesson.equal(f'eps_hat of a network that predicts "{predict}"', eps_hat, eps_star)
score = forward.score_from_eps(x_t, t, eps_star, schedule)
h = 1e-3
move = np.array([h, 0.0])  # along the first coordinate
ahead, behind = roll.log_prob(x_t + move, signal, noise), roll.log_prob(x_t - move, signal, noise)
slope = (ahead - behind) / (2 * h)
ahead = roll.log_prob(x_t + 2 * move, signal, noise)
behind = roll.log_prob(x_t - 2 * move, signal, noise)
wide = (ahead - behind) / (4 * h)
# q(x_t) is the mean of q(x_t | x_0) over x_0, so its slope, grad q / q, is E[-eps / noise | x_t].
# Errors grow as h^2, fourfold from `slope` to `wide`: a third of what lies between is slope's own.
lesson.equal("d log q(x_t) / d x_t", slope, score[:, 0], within=np.abs(wide - slope).max())

print("One mistake, four losses: they differ by a weight at each t, and SNR = signal^2 / noise^2")
eps_hat = eps + 0.1 * rng.standard_normal((n, 2))  # a wrong prediction, in all four units
x_0_hat = forward.x_0_from_eps(x_t, t, eps_hat, schedule)
v_hat = forward.v_from_eps(x_t, t, eps_hat, schedule)
error = x_0_hat - x_0
snr = (signal / noise) ** 2
lesson.equal("eps_hat - eps = -signal / noise (x_0_hat - x_0)", eps_hat - eps, -(snr**0.5) * error)
# v_hat - v = signal (eps_hat - eps) - noise error = -(signal^2 + noise^2) / noise error, and
# 1 / noise^2 = (signal^2 + noise^2) / noise^2 = SNR + 1.
lesson.equal("v_hat - v = -sqrt(1 + SNR) (x_0_hat - x_0)", v_hat - v, -((1 + snr) ** 0.5) * error)
outs = (eps_hat, x_0_hat, v_hat, -eps_hat)  # the score is predicted as noise score = -eps
weights = (snr, np.ones_like(snr), 1 + snr, snr)
params = mlp.init(rng)  # an untrained network, whose gradients are compared
for predict, out, w in zip(PREDICT, outs, weights, strict=True):
    batch = x_0, t, eps, schedule, predict
    loss, _ = l_target(out, *batch)
    simple, _ = l_simple(out, *batch)
    lesson.equal(f"{predict}: l_target = weight x_0's error^2", (w * error**2).mean(axis=1), loss)
    lesson.equal(f"{predict}: l_simple = SNR x_0's error^2", (snr * error**2).mean(axis=1), simple)
    change = eps_from_output(x_t, t, out + 1, schedule, predict) - eps_hat
    lesson.equal(f"{predict}: eps_per_output", change, eps_per_output(x_t, t, schedule, predict))
    if w is not snr:  # for eps and the score the two losses are one
        _, grad = gradient(mlp, params, *batch, l_simple)
        _, of_target = gradient(mlp, params, *batch, l_target, (snr / w)[:, 0])
        lesson.equal(f"{predict}: dL/dtheta, l_target x SNR / weight", of_target, grad)

signal_T, noise_T = schedule.signal[T], schedule.noise[T]
c = 0.01  # added to every output
print(f"{c} too much at T, where signal = {signal_T:.2g}: x_0_hat and the next x_s move")
x_T = rng.standard_normal((n, 2))
predict_eps = roll.predictor(schedule)
jumps = {  # since eps = noise x_t + signal v, an error of v is signal times as large in eps
    "none": list(ddim(predict_eps, x_T, schedule, steps=50)),
    "eps": list(ddim(lambda x, t: predict_eps(x, t) + c, x_T, schedule, steps=50)),
    "v": list(ddim(lambda x, t: predict_eps(x, t) + c * schedule.signal[t], x_T, schedule, 50)),
}
best = jumps["none"][0]  # the first jump, from T to s
s = best.t_prev
rounding = 100 * np.finfo(float).eps / signal_T  # x_0_hat = (x_T - noise eps_hat) / signal
for name, wrong in (("eps", c), ("v", c * signal_T)):  # by so much eps_hat is wrong
    jump = jumps[name][0]
    off = -noise_T / signal_T * wrong
    off_s = schedule.signal[s] * off + schedule.noise[s] * wrong  # x_s = signal x_0 + noise eps
    lesson.equal(f"{name} + {c}: x_0_hat", jump.x_0_hat - best.x_0_hat, off, within=rounding)
    lesson.equal(f"{name} + {c}: x_s", jump.x_prev - best.x_prev, off_s, within=rounding)
for name, steps in jumps.items():
    away = distance_to_curve(steps[-1].x_prev, roll).mean()
    print(f"  {c} added to {name} in 50 jumps: samples {away:.3f} from the curve")
level = np.linspace(-5, 5, 101)  # log(noise / signal)
ts = np.arange(1, T + 1)
SNR = np.exp(-2 * level)
weight = [
    draw.Series("v: 1 + SNR", level, 1 + SNR, draw.MODEL, 4.0),
    draw.Series("eps: SNR", level, SNR, draw.DATA),
    draw.Series("x_{0}: 1", level, np.ones_like(SNR), draw.INK),
]
of_v = c * schedule.noise[1:]
of_eps = c * schedule.noise[1:] / schedule.signal[1:]
growth = [draw.Series("v", ts, of_v), draw.Series("eps", ts, of_eps, draw.DATA)]
colors = {"v": draw.MODEL, "eps": draw.DATA}
clouds = [draw.Dots(name, jumps[name][-1].x_prev, colors[name], 0.8, 1.6) for name in colors]
draw.board(
    "out/lessons/05.png",
    [
        draw.View("Three losses", weight, "level", "weight of |x_{0} error|^{2}", log_y=True),
        draw.View(f"An output off by {c}", growth, "step t", "error of x_{0}", log_y=True),
        draw.View(f"Samples, {c} in each jump", clouds, "first coordinate", "second coordinate"),
    ],
    "Left: what the squared error of x_{0} counts in each loss, over level = log(noise / signal). "
    f"Middle: what an error of {c} in the output becomes in x_{{0}}: at T it is {of_eps[-1]:.3g} "
    f"by way of eps. Right: 50 DDIM jumps, {c} added each time to a perfect v or eps.",
    columns=3,
)
print("out/lessons/05.png")

# Change this, and see:
#   linear for cosine (twice)    0.01 in eps is 1.57 in x_0 at T, and all three draw the roll
#   c = 0.001                    by way of eps the first jump is still off by 0.63
