"""Is flow matching something else?

No: x_t = (1 - u) x_0 + u eps is one more schedule, and the velocity E[eps - x_0 | x_t] is eps, x_0,
v or the score in another unit. Its loss is v's over std^2, and Euler's method on its ODE is DDIM.
Every schedule's ODE has the same paths, once x is divided by signal + noise. What differs is how
much each level counts in training, and where a sampler's steps lie.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff import exact
from npdiff.forward import q_sample, score_from_eps
from npdiff.loss import l_simple, l_target
from npdiff.output import eps_from_output
from npdiff.papers import distillation, edm, flow_matching
from npdiff.sampler import ddim
from npdiff.schedule import Schedule, cosine

rng = np.random.default_rng(0)
data = exact.Mixture([0.35, 0.65], [[-1.2], [0.8]], [[[0.05]], [[0.1]]])  # two bumps on a line
T, line = 50, flow_matching.straight(50)  # the book's table: signal = 1 - u, noise = u
x_0, eps = data.sample(1000, rng, np.float64), rng.standard_normal((1000, 1))

print("The line from x_0 to eps is a schedule, and it is travelled at a constant velocity")
on_line = [q_sample(x_0, t, eps, line) for t in range(1, T + 1)]
by_hand = [x_0 + t / T * (eps - x_0) for t in range(1, T + 1)]
lesson.equal("x_0 + t/T (eps - x_0) = q_sample", by_hand, on_line)
lesson.equal("d x_t / d u = eps - x_0", np.diff(on_line, axis=0) * T, eps - x_0)

print("Many lines cross at x_t, where only their mean velocity can be known: E[eps - x_0 | x_t]")
x_t, t = rng.standard_normal((T, 1)), np.arange(1, T + 1)  # one point at each t, pure noise too
x_t[T // 2 - 1] = 0.4  # the point of the picture, at u = 1/2
s = line.at(t, x_t)
grid = np.linspace(-5, 5, 20_001)  # every x_0 from which a line may come
w = np.exp(data.log_prob(grid[:, None]) - 0.5 * ((x_t - s.signal * grid) / s.noise) ** 2)
w /= w.sum(axis=1, keepdims=True)  # Bayes: the share of each x_0 among x_t's lines
slopes = (x_t - s.signal * grid) / s.noise - grid  # eps - x_0 of the line from x_0 through x_t
velocity = (w * slopes).sum(axis=1, keepdims=True)
lesson.equal("mean of the lines = the book's velocity", velocity, data.velocity(line)(x_t, t))
eps_star, x_0_star = data.predictor(line)(x_t, t), data.denoiser(line)(x_t, t)
v_star = (s.signal * eps_star - s.noise * x_0_star) / s.std  # what a network predicts
some = t < T  # at T the signal is 0, and x_T = eps says nothing about x_0
signal, noise = s.signal[some], s.noise[some]
# eps - x_0 = ((1 - u) eps + u eps - x_t) / (1 - u), since (1 - u) x_0 = x_t - u eps
lesson.equal("= (eps* - x_t) / signal", velocity[some], (eps_star - x_t)[some] / signal)
of_score = -(noise * score_from_eps(x_t, t, eps_star, line)[some] + x_t[some]) / signal
lesson.equal("= -(noise score + x_t) / signal", velocity[some], of_score)
# eps - x_0 = (x_t - (1 - u) x_0 - u x_0) / u, since u eps = x_t - (1 - u) x_0: fine at T as well
lesson.equal("= (x_t - x_0*) / noise", velocity, (x_t - x_0_star) / s.noise)
by_v = flow_matching.velocity_from_v(x_t, t, v_star, line)
lesson.equal("= v* / std - (signal - noise) x_t / std^2", velocity, by_v)
lesson.equal("at T it is x_T - E[x_0]", velocity[-1], x_t[-1] - data.weights @ data.means)

print("Flow matching learns from single lines, whose velocities scatter around the mean")
# E|a - slope|^2 = |a - mean|^2 + Var, for any guess a: the lines add a constant, no gradient.
spread = (w * (slopes - velocity) ** 2).sum(axis=1)
left = data.irreducible_loss(x_t, t, line)[some] / signal[:, 0] ** 2
lesson.equal("Var[eps - x_0 | x_t] = Var[eps | x_t]/signal^2", spread[some], left)
out, from_x_0, eps = np.full((grid.size, 1), 0.7), grid[:, None], (slopes[29] + grid)[:, None]
loss, grad_out = flow_matching.flow_matching_loss(out, from_x_0, 30, eps, line)  # a row for a line
wrong = (flow_matching.velocity_from_v(x_t[[29]], 30, out[:1], line) - velocity[29]).item()
lesson.equal("v_hat = 0.7, t = 30: loss - |a - mean|^2 = Var", w[29] @ loss - wrong**2, spread[29])
lesson.equal("its gradient = that of |a - mean|^2", w[29] @ grad_out, 2 * wrong / line.std[30])

print("One wrong output, three losses: v's over std^2, and eps's over signal^2")
x_0, eps, v_hat = rng.standard_normal((3, T, 1))
x_t, batch = q_sample(x_0, t, eps, line), (x_0, t, eps, line, "v")
loss, _ = flow_matching.flow_matching_loss(v_hat, *batch)
off = flow_matching.velocity_from_v(x_t, t, v_hat, line) - (eps - x_0)
lesson.equal("|velocity_hat - (eps - x_0)|^2", off[:, 0] ** 2, loss)
lesson.equal("= l_target of v / std^2", l_target(v_hat, *batch)[0] / line.std[t] ** 2, loss)
by_eps = l_simple(v_hat, *batch)[0][some] / signal[:, 0] ** 2
lesson.equal("= l_simple / signal^2, for t < T", by_eps, loss[some])

print("The ODE dx = velocity du moves mass as q does: dq/du = -d(q velocity)/dx, at u = 0.4")
x, rates, flows = np.linspace(-3, 3, 301), [], []
for h in (2e-3, 4e-3):  # central differences in u and in x, whose errors grow as h^2
    q = [np.exp(data.log_prob(x[:, None], 0.6 - d, 0.4 + d)) for d in (h, -h)]
    rates.append((q[0] - q[1]) / (2 * h))
    at_04, beside = Schedule([1, 0.6], [0, 0.4]), np.concatenate([x + h, x - h])[:, None]
    flow = np.exp(data.log_prob(beside, 0.6, 0.4)) * data.velocity(at_04)(beside, 1)[:, 0]
    flows.append((flow[:301] - flow[301:]) / (2 * h))
# The error is fourfold at 2 h, so a third of the change is the error at h. All of it is allowed.
allowed = np.abs(np.diff(rates, axis=0)).max() + np.abs(np.diff(flows, axis=0)).max()
lesson.equal("dq/du = -d(q velocity)/dx", rates[0], -flows[0], within=allowed)

print("On any schedule y = x / (signal + noise) lies on the line, at u = noise / (signal + noise)")
vp = cosine(T)  # log(noise / signal) stays, so it is the same x_0 under the same share of noise
same = Schedule(vp.signal / (total := vp.signal + vp.noise), vp.noise / total)
eps_y = data.predictor(same)(x_t / total[t][:, None], t)
lesson.equal("eps* of x_t = eps* of y", data.predictor(vp)(x_t, t), eps_y)
x_T, ends = rng.standard_normal((40, 1)), {}
# On the line x_0_hat = x - u velocity and eps_hat = x + (1 - u) velocity. So DDIM's
# (1 - u_prev) x_0_hat + u_prev eps_hat is x - (u - u_prev) velocity, a step of Euler's method.
jumps = [step.x_prev / total[step.t_prev] for step in ddim(data.predictor(vp), x_T, vp, T)]
euler = [step.x_prev for step in flow_matching.euler(data.velocity(same), x_T / total[T], same)]
allowed = 100 * np.finfo(float).eps / vp.signal[T]  # at T, DDIM divides rounding by the signal
lesson.equal("DDIM on cosine / total = Euler on the line", jumps, euler, within=allowed)
for N in (200, 400):  # the same ODE with steps elsewhere, equal in u: other errors, one limit
    wave = cosine(N)
    u = np.linspace(0, wave.noise[N] / (total := wave.signal[N] + wave.noise[N]), N + 1)
    *_, by_wave = edm.heun(data.predictor(wave), x_T * total, wave)
    *_, by_line = flow_matching.heun(data.velocity(Schedule(1 - u, u)), x_T, Schedule(1 - u, u))
    ends[N] = by_wave.x_prev, by_line.x_prev
# Order 2: a third of what the last 200 steps change is the error left. All of it is allowed.
allowed = sum(np.abs(a - b).max() for a, b in zip(ends[200], ends[400], strict=True))
lesson.equal("the ends of 400 Heun steps, both", *ends[400], within=allowed)

print("What differs is how much a level counts: its share of the t, times the weight of its loss")
circle = distillation.angular(T)  # the cosine schedule without its offset: noise = sin(pi/2 u)
losses = flow_matching.flow_matching_loss, l_target, l_simple
names, counts = ("flow matching", "v, cosine", "eps, cosine"), {}
zero, t, v_hat = np.zeros((T - 1, 1)), np.arange(1, T), np.ones((T - 1, 1))
for name, objective in zip(names, losses, strict=True):
    s, per_u = (circle, 2 / np.pi) if "cosine" in name else (line, 1.0)
    eps_hat = eps_from_output(zero, t, v_hat, s, "v")  # wrong, where x_0 and eps are 0
    weight = objective(v_hat, zero, t, zero, s, "v")[0] / eps_hat[:, 0] ** 2  # of eps's error
    # A level, log(noise / signal), has the share du/d level of the t. On the line d level/du is
    # 1/u + 1/(1-u) = 1 / (noise signal), on the circle (cos/sin + sin/cos) pi/2: pi/2 times that.
    counts[name] = s.level[t], weight * s.noise[t] * s.signal[t] * per_u
for name, front in (("flow matching", 1.0), ("v, cosine", 2 / np.pi)):
    by_hand = front * np.exp(counts[name][0])  # the level, log(noise / signal)
    lesson.equal(f"{name}: {front:.3f} noise / signal", counts[name][1], by_hand)
print("  so v on the cosine schedule and flow matching are one loss, up to the factor 2 / pi")

x_0 = grid[rng.choice(grid.size, size=40, p=w[T // 2 - 1])]  # w is Bayes' share at t = T / 2
slope, ends, where = velocity[T // 2 - 1], np.array([0.0, 1.0]), (0, 1, -3, 3)
lines = [draw.Series("", ends, np.array([z, 0.8 - z]), draw.EXACT, 0.7) for z in x_0]
lines += [draw.Series("their mean", ends, 0.4 + slope * (ends - 0.5), draw.MODEL, 3.0)]
views = [draw.View("Lines through one point", lines, "t / T", "x_{t}", extent=where)]
shown, straight, angular = x_T[:30], flow_matching.straight(200), distillation.angular(200)
walks = [flow_matching.euler(data.velocity(straight), shown, straight)]
walks += [distillation.ddim(distillation.exact_v(data, angular), shown, angular)]
for name, walk in zip(("straight", "cosine"), walks, strict=True):
    x = np.array([shown[:, 0], *(step.x_prev[:, 0] for step in walk)])
    paths = [draw.Series("", np.linspace(1, 0, 201), path, draw.MODEL, 1.0) for path in x.T]
    views += [draw.View(f"The ODE, {name} schedule", paths, "t / T", "x_{t}", extent=where)]
colors = zip(names, (draw.MODEL, draw.DATA, draw.INK), strict=True)
weights = [draw.Series(name, *counts[name], color, 2.0) for name, color in colors]
views += [draw.View("What a level counts", weights, "level", "share x weight", log_y=True)]
caption = (
    "Data at t = 0, noise at T. Above: a network learns the mean slope of lines through x_{t}; "
    "the ODE follows it. Below: the same paths on the cosine schedule, times signal + noise; "
    "and what an error of eps counts at each level = log(noise / signal)."
)
draw.board("out/lessons/16.png", views, caption, height=270)
print("out/lessons/16.png")

# Change this, and see:
#   x_t[T // 2 - 1] = -0.2       between the bumps: Var[eps - x_0 | x_t] there is 3.67, not 1.37
#   vp = linear(T)               (import it) the lines of DDIM agree: any schedule will do
