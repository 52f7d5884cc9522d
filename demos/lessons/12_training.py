"""Why unit variance, why the level, why an average of theta, why clip?

Layers add up their inputs, so these need one size: x_t / std_t has variance 1 at every t. The best
eps_hat depends on t through the level alone. Noisy gradients shake theta, and its average is nearer
to the optimum. One bad row moves Adam by thirty times lr; clipped, it moves it by one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff.exact import SwissRoll
from npdiff.forward import q_sample
from npdiff.nn import mlp, ops
from npdiff.optim import adam, average, clip_norm
from npdiff.output import network_input
from npdiff.papers import dpm2015
from npdiff.schedule import Schedule, linear, uniform_log_snr
from npdiff.train import gradient, start, uniform, update

rng, roll, schedule, T = np.random.default_rng(0), SwissRoll(), linear(T=1000), 1000
exploding = Schedule(np.ones(T + 1), schedule.noise / schedule.signal)  # the same levels, signal 1
t = np.repeat(np.arange(25, T, 50), 50)  # 20 values of t, 50 rows each
x_0, eps = roll.sample(1000, rng, np.float64), rng.standard_normal((1000, 2))

print("Unit variance: of data of variance 1, x_t has the variance std_t^2 = signal_t^2 + noise_t^2")
x_250 = q_sample(x_0, 250, eps, exploding)
squares, var = (x_250**2).mean(axis=1), exploding.std[250] ** 2  # a square a row; the mean is 0
lesson.equal("Var x_250 = std_250^2", squares.mean(), var, squares.std() / 1000**0.5)
# The first layer has 14 inputs: x, and 6 sines and 6 cosines of the level, whose squares sum to 6.
# Its weights have mean 0 and variance 1/14, so its outputs h have E h^2 = (|x|^2 + 6) / 14.
x, level = network_input(x_250, 250, exploding)  # x = x_t / std_t
inputs = np.concatenate([x, ops.level_waves(level, mlp.FREQUENCIES)], axis=1)
h2 = np.array([((inputs @ mlp.init(rng)["first"]["w"]) ** 2).mean() for _ in range(100)])
lesson.equal("E h^2 = (E|x|^2 + 6) / 14", h2.mean(), (2 * (x**2).mean() + 6) / 14, h2.std() / 10)
share = 6 / (2 * exploding.std[T] ** 2 + 6)
print(f"  the level's share is 3/4; with x_T unscaled {share:.5f}")

print("The level: E[eps | x_t] depends on t through noise_t / signal_t alone")
x_t, s = q_sample(x_0, t, eps, schedule), schedule.at(t, x_0)
x_t_1 = x_t / s.signal  # = x_0 + noise_t / signal_t eps: it belongs to the exploding schedule
eps_star = roll.predictor(schedule)(x_t, t)
lesson.equal("eps*(x_t, t) on both", eps_star, roll.predictor(exploding)(x_t_1, t))
given, given_1 = network_input(x_t, t, schedule), network_input(x_t_1, t, exploding)
lesson.equal("x_t / std_t and the level on both", np.column_stack(given), np.column_stack(given_1))


def unscaled(x_t, t, s):  # what the network is given: x_t as it is, and the level
    _, level = network_input(x_t, t, s)
    return x_t, level


steps, batch, lr = 240, 128, 5e-3
print(f"{steps} steps, each run with one change: E|eps_hat - eps*|^2 by ema, the average of theta")
runs = {  # the data's factor, the schedule, what the network is given, the largest |gradient|
    "the book": (1, schedule, network_input, 1.0),
    "data times 40": (40, schedule, network_input, 1.0),
    "inputs unscaled": (1, exploding, unscaled, 1.0),
    "t for the level": (1, schedule, dpm2015.network_input, 1.0),  # 10 t / T - 5
    "no clipping": (1, schedule, network_input, np.inf),
}
x_40 = q_sample(40 * x_0, t, eps, schedule)
best = {1: eps_star, 40: -s.noise * roll.score(x_40, 40 * s.signal, s.noise)}
nets, curves = {}, {}
for name, (factor, process, net_input, clip) in runs.items():
    rng = np.random.default_rng(0)  # the same draws in each run
    state, excess = start(mlp.init(rng)), np.zeros((steps // 10, 2, 1000))
    nets[name] = (state.params, state.ema_params)
    x = q_sample(factor * x_0, t, eps, process).astype(np.float32)
    for step in range(1, steps + 1):
        data, ts = factor * roll.sample(batch, rng), uniform(batch, T, rng)
        if step == 160:
            data[0] *= 10**5  # once, a bad row
        noise = rng.standard_normal((batch, 2), dtype=np.float32)
        _, grad = gradient(mlp, state.params, data, ts, noise, process, network_input=net_input)
        update(state, grad, 10**9, lr, clip=clip)  # of so many steps: the rate stays at lr
        if step % 10 == 0:  # of theta, and of its average
            hats = [mlp.forward(net, *net_input(x, t, process))[0] for net in nets[name]]
            excess[step // 10 - 1] = ((hats - best[factor]) ** 2).mean(axis=2)
    theta, ema = curves[name] = excess.mean(axis=2).T
    text = f"{ema[-1]:.4f} +- {excess[-1, 1].std() / 1000**0.5:.4f}, by theta {theta[-1]:.4f}"
    print(f"  {name:22}{text}; after the bad row up to {ema[16:].max():.4f}")
other, t_other = uniform_log_snr(100, -4.5, 5.0), np.repeat(np.arange(3, 101, 5), 50)
x, by_level = q_sample(x_0, t_other, eps, other), {}
for name in ("the book", "t for the level"):
    _, _, net_input, _ = runs[name]
    _, ema_params = nets[name]
    eps_hat, _ = mlp.forward(ema_params, *net_input(x, t_other, other))
    rows = (eps_hat - roll.predictor(other)(x, t_other)) ** 2
    by_level[name] = rows.reshape(20, 100).mean(axis=1)
    print(f"  {name:22}{by_level[name].mean():.4f} on a schedule that it was not trained on")

print("The average, ema = d ema + (1 - d) theta, on theta^2 / 2 with a gradient theta + xi")
n, d, r, chains = 1000, 0.95, 0.1, 4000
weights, age = np.zeros(n), np.arange(n)[::-1]  # age: steps since that theta
theta, ema = rng.standard_normal(chains), np.zeros(chains)
for k in range(n):
    average(weights, np.eye(1, n, k)[0], 10_000 + k, d)  # entry k: a theta that is 1 at step k only
    theta = theta - r * (theta + rng.standard_normal(chains))
    average(ema, theta, 10_000 + k, d)
lesson.equal("weights = (1 - d) d^age", weights, (1 - d) * d**age)
V = r / (2 - r)  # theta = (1 - r) theta - r xi keeps it: V = (1 - r)^2 V + r^2
V_ema = weights @ (V * (1 - r) ** np.abs(age[:, None] - age)) @ weights  # Cov = V (1 - r)^lag
lesson.equal("Var theta = r / (2 - r)", theta.var(), V, V * np.sqrt(2 / chains))
lesson.equal("Var ema = sum of weight weight Cov", ema.var(), V_ema, V_ema * np.sqrt(2 / chains))

print(
    "Adam's step has the size of lr, m_hat / sqrt(v_hat) being about 1, but for a sudden gradient g"
)
decays = sum((0.9 / 0.999**0.5) ** k for k in range(100))  # of m and sqrt(v) after g, in 100 steps
for g, first in ((np.array([1e6]), 0.1 / 0.001**0.5), (clip_norm(np.array([1e6]), 1.0), 0.1)):
    theta, m, v = np.zeros(1), np.zeros(1), np.ones(1)  # gradients of size 1 came before g
    for k in range(100):  # and 0 comes after it
        adam(theta, g * (k == 0), m, v, 10**6 + k, 1.0)
    lesson.equal(f"g = {g[0]:g}: theta moves by lr times", -theta, first * decays, within=1e-6)

colors = {"data times 40": draw.DATA, "inputs unscaled": draw.INK, "no clipping": "#4c9a5b"}
at, colors["the book"] = np.arange(10, steps + 1, 10), draw.MODEL
left = [draw.Series("the book, without average", at, curves["the book"][0], draw.EXACT)]
left += [draw.Series(name, at, curves[name][1], color) for name, color in colors.items()]
colors["t for the level"] = draw.DATA
right = [draw.Series(name, other.level[3::5], by_level[name], colors[name]) for name in by_level]
draw.board(
    "out/lessons/12.png",
    [
        draw.View("One change each", left, "step of training", "excess", log_y=True),
        draw.View("On another schedule", right, "log(noise / signal)", "excess", log_y=True),
    ],
    "The excess is E|eps_hat - eps*|^{2} a coordinate. Left: inputs out of scale are learned more "
    "slowly, theta strays farther than its average, and a bad row at step 160, unclipped, throws "
    "it far back. Right: told t, a network knows one schedule; told the level, it serves others.",
    height=320,
)
print("out/lessons/12.png")

# Change this, and see:
#   1500 steps        on the other schedule the book comes to 0.035; told t, it stays at 0.16
#   data[0] *= 10     a bad row that does little harm, clipped or not
