"""Why does DDIM need no noise, and why may it skip steps?

Training sees nothing but q(x_t | x_0), so every process with these marginals has the same best
network. In one of them sigma is 0: instead of drawing new noise, a step keeps all of the old noise,
sqrt(noise_s^2 - sigma^2) eps_hat. Without new noise x follows an ODE, and DDIM is Euler's method on
it. It may skip steps where the ODE's curves are nearly straight; its error falls as 1 / steps.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from lab.metrics import distance_to_curve, energy_distance
from npdiff import exact, normal
from npdiff.forward import eps_from_x_0, q_posterior, q_sample
from npdiff.loss import l_simple
from npdiff.papers.edm import heun
from npdiff.sampler import ddim
from npdiff.schedule import Schedule, linear

rng = np.random.default_rng(0)
schedule, n = linear(T=1000), 50_000
T, signal, noise = schedule.T, schedule.signal, schedule.noise

print("Data: one point, whose predictor knows eps. Ten jumps, each from t to s, keep q(x_s | x_0)")
# A jump ends at x_s = signal_s x_0 + sqrt(noise_s^2 - sigma^2) eps + sigma z: it keeps a part of
# eps, the noise in x_t, and draws a new z. (sigma is eta times the deviation of DDPM's step.) Given
# x_0 the variance is (noise_s^2 - sigma^2) + sigma^2 = noise_s^2, whatever sigma is, as in q.
x_0 = np.full((n, 1), 0.7)
x_T = q_sample(x_0, T, rng.standard_normal((n, 1)), schedule)
for eta in (0.0, 0.5, 1.0):
    ends, carried, drawn = [], [], []
    for step in ddim(lambda x, t: eps_from_x_0(x, t, x_0, schedule), x_T, schedule, 10, eta, rng):
        slope = (step.mean[1] - step.mean[0]) / (step.x_t[1] - step.x_t[0])  # x_s = slope x_t + ...
        mean = step.mean[0] - slope * (step.x_t[0] - signal[step.t] * 0.7)  # at the mean of x_t
        var = slope**2 * noise[step.t] ** 2 + step.sigma**2  # kept of the old noise, and new noise
        ends, carried = [*ends, step.t_prev], [*carried, np.append(mean, var)]
        drawn.append(step.x_prev.var())
    marginal = np.stack([signal[ends] * 0.7, noise[ends] ** 2], axis=1)
    lesson.equal(f"eta = {eta}: mean, variance = those of q(x_s | x_0)", carried, marginal)
    var = marginal[:-1, 1]  # the last jump, to s = 0, ends at x_0
    lesson.equal("  variance of draws", drawn[:-1], var, error=var * (2 / n) ** 0.5)
step = next(ddim(lambda x, t: eps_from_x_0(x, t, x_0, schedule), x_T, schedule, T, 1.0, rng))
ddpm_mean, ddpm_var = q_posterior(x_0, x_T, T, schedule)
lesson.equal("eta = 1, jumps of 1 are DDPM's: mean", step.mean, ddpm_mean)
lesson.equal("  and variance, beta_tilde", step.sigma**2, ddpm_var)

print("Two processes of the same marginals have the same loss. Data N(0, 1/4), s = 100, t = 300")
gaussian, s, t = exact.Gaussian(np.zeros(1), 0.25 * np.eye(1)), 100, 300
x_0, eps_s, fresh = rng.standard_normal((3, n, 1))
x_0 = 0.5 * x_0  # data N(0, 1/4)
rho = signal[t] / signal[s] * noise[s] / noise[t]  # of q: x_t = signal_t / signal_s x_s + new noise
best_loss = 0.25 * signal[t] ** 2 / (0.25 * signal[t] ** 2 + noise[t] ** 2)  # Var[eps_t | x_t]
noises = {"q, step by step": rho * eps_s + (1 - rho**2) ** 0.5 * fresh, "DDIM": eps_s}
for name, eps_t in noises.items():
    x_t = q_sample(x_0, t, eps_t, schedule)
    loss, _ = l_simple(gaussian.predictor(schedule)(x_t, t), x_0, t, eps_t, schedule)
    shared = np.corrcoef(eps_s[:, 0], eps_t[:, 0])[0, 1]
    print(f"  {name}: the noises in x_s and x_t have the correlation {shared:.2f}")
    lesson.equal("  its loss at t", loss.mean(), best_loss, error=loss.std() / n**0.5)

print("The ODE dy = E[eps | y] dsigma, with y = x / signal = x_0 + sigma eps, moves mass as q:")
sigma = noise / signal  # from here on, the noise in y
peaks = exact.Mixture([0.3, 0.4, 0.3], [[-1.2], [0.0], [1.2]], np.full((3, 1, 1), 0.15**2))
y, at, h = np.linspace(-3, 3, 601)[:, None], 0.5, 1e-3  # at sigma = 0.5
flow = np.exp(peaks.log_prob(y, 1.0, at)) * -at * peaks.score(y, 1.0, at)[:, 0]  # q E[eps | y]
below = [np.exp(normal.log_cdf((y - peaks.means.T) / np.hypot(0.15, at + d))) for d in (h, -h)]
change = (below[0] - below[1]) / (2 * h) @ peaks.weights  # of the mass below y, as sigma grows
# The quotient errs by h^2/6 times a third derivative, which is about 4 here.
lesson.equal("dP(Y < y)/dsigma = -q(y) E[eps | y]", change, -flow, within=2 * h**2)

print("DDIM is Euler's method on it, y_s - y_t = (sigma_s - sigma_t) eps_hat. On the roll:")
roll, clouds, x_T = exact.SwissRoll(), {}, rng.standard_normal((2000, 2))
for steps in (1, 5, 10, 50):  # one jump ends at E[x_0 | x_T], near the mean of the data
    jumps, euler = [], []
    for step in ddim(roll.predictor(schedule), x_T, schedule, steps):
        jumps.append(step.x_prev / signal[step.t_prev] - step.x_t / signal[step.t])
        euler.append((sigma[step.t_prev] - sigma[step.t]) * step.eps_hat)
    lesson.equal(f"steps = {steps}", jumps, euler)
    clouds[f"DDIM in {steps} steps"] = step.x_prev
for steps in (5, 10):
    *_, step = ddim(roll.predictor(schedule), x_T, schedule, steps, 1.0, rng)
    clouds[f"eta = 1 in {steps} steps"] = step.x_prev
clouds["data"], others = roll.sample(2000, rng), roll.sample(2000, rng)
# The energy distance to other data is 0 where all is right. It also sees points that are spread
# wrongly along the curve, or lie too near to it, which their distance from the curve does not.
distances = {}
print("                       energy distance   rms distance from the curve")
for name, x in clouds.items():
    distances[name] = energy_distance(x, others)
    rms = (distance_to_curve(x, roll) ** 2).mean() ** 0.5
    print(f"  {name:20} {distances[name]:16.4f}{rms:16.3f}")

print("How far may a jump go? Data N(0, s^2): y = sqrt(s^2 + sigma^2) solves the ODE")
pair = exact.Gaussian(np.zeros(2), np.diag([0.25, 1.0]))  # two coordinates, s = 1/2 and s = 1
y = np.sqrt([0.25, 1.0] + sigma[1:, None] ** 2)
eps_hat = pair.predictor(schedule)(signal[1:, None] * y, np.arange(1, T + 1))
lesson.equal("dy/dsigma = sigma / y = E[eps | y]", sigma[1:, None] / y, eps_hat)
Ns = 10 * 2 ** np.arange(6)
euler = np.zeros((6, 2))  # x_0 by DDIM: a row for each N, a column for each s
second = np.zeros((6, 2))  # and by Heun's method
for i, N in enumerate(Ns.tolist()):
    angle = np.linspace(0, 1.3, N + 1)  # N jumps of equal angle, with signal = cos, noise = sin
    circle = Schedule(np.cos(angle), np.sin(angle))
    euler[i] = [*ddim(pair.predictor(circle), np.ones((1, 2)), circle, steps=N)][-1].x_prev
    second[i] = [*heun(pair.predictor(circle), np.ones((1, 2)), circle)][-1].x_prev
# s = 1: E[x_0 | x_t] = signal_t x_t and E[eps | x_t] = noise_t x_t, so a jump multiplies x_t by
# signal_s signal_t + noise_s noise_t = cos(angle_t - angle_s), where the exact flow leaves it at 1.
lesson.equal("s = 1: N jumps multiply by cos(1.3 / N)^N", euler[:, 1], np.cos(1.3 / Ns) ** Ns)
lines = []
true = 0.5 / np.hypot(0.5 * circle.signal[-1], circle.noise[-1])  # s = 1/2: x_0 for x_T = 1
for name, x, order, color in (("DDIM", euler, 1, draw.MODEL), ("Heun", second, 2, draw.DATA)):
    error = np.abs(x[:, 0] - true)  # c / N^order (1 + O(1 / N)), so halved or quartered by 2 N
    slope = np.log2(error[4] / error[5])  # from 160 jumps to 320
    lesson.equal(f"s = 1/2: the order of {name}", slope, order, within=1 / 160)
    lines += [draw.Series(name, Ns, error, color, 2.0)]

paths = []
for eta in (0.0, 1.0):
    ts, x = [T], [x_T[:10, 0]]
    for step in ddim(peaks.predictor(schedule), x_T[:10, :1], schedule, 200, eta, rng):
        ts, x = [*ts, step.t_prev], [*x, step.x_prev[:, 0]]
    paths.append([draw.Series("", np.array(ts), line, draw.MODEL, 1.2) for line in np.transpose(x)])
views = [
    draw.View("eta = 0: no new noise", paths[0], "step t", "x_{t}", extent=(0, T, -3, 3)),
    draw.View("eta = 1: as much as DDPM", paths[1], "step t", "x_{t}", extent=(0, T, -3, 3)),
    draw.View("Data N(0, 1/4)", lines, "steps", "error of x_{0}", log_x=True, log_y=True),
]
data = draw.Dots("", clouds["data"][:1000], draw.EXACT)
around = draw.square_around(clouds["data"])
for name in list(clouds)[1:4]:
    dots = draw.Dots("", clouds[name][:1000], draw.MODEL)
    views += [draw.View(name, [data, dots], extent=around)]
caption = (
    "Above: two samplers with the same marginals, three peaks at t = 0. Without new noise paths "
    "are smooth, so few steps follow them better: in 10 steps the roll's energy distance is "
    f"{distances['DDIM in 10 steps']:.3f}, with eta = 1 {distances['eta = 1 in 10 steps']:.3f}. "
    "Below: the roll with a perfect predictor, eta = 0 (grey: data). In too few steps points fall "
    "short of the curve, towards the mean of the data."
)
draw.board("out/lessons/09.png", views, caption, columns=3)
print("out/lessons/09.png")

# Change this, and see:
#   schedule = cosine(T=1000)    (import it too) DDIM in 10 steps is 0.08 from the
#                                curve, with linear 0.17
#   eta in (0.0, 0.5, 1.2)       refused: sigma would exceed noise_s, all the noise of x_s
