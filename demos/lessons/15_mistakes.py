"""My samples look wrong: which mistake is it?

Measure a number whose right value is known. Below, twenty classic slips are planted, one at a time,
in a sampler whose predictor is exact. Some clouds still look right, and the energy distance and the
bound miss some slips too, but for each slip there is a number that gives it away.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson, metrics

lesson.begin(__doc__)

from functools import partial
from types import SimpleNamespace

import numpy as np

from npdiff import exact, likelihood, normal, reverse, sampler, train
from npdiff.forward import q_sample, x_0_from_eps
from npdiff.nn import mlp
from npdiff.schedule import Schedule, cosine, linear

rng = np.random.default_rng(0)
n, m, T, schedule = 500, 4000, 50, cosine(50)
signal, noise, alpha = schedule.signal, schedule.noise, schedule.alpha
beta, beta_tilde = schedule.beta, schedule.beta_tilde
roll = exact.SwissRoll(noise=0.5)
means = roll.curve(np.linspace(roll.U_MIN, roll.U_MAX, 100))  # the data: a Gaussian at each of
covs = np.tile(roll.noise**2 * np.eye(2), (100, 1, 1))  # 100 points of the roll
data, big = (exact.Mixture(np.full(100, 0.01), k * means, k**2 * covs) for k in (1, 40))
left = data.part(means[:, 0] < 0)  # the data that have one of two labels
eps_star, x_0_star = data.predictor(schedule), data.denoiser(schedule)  # E[eps | x_t], E[x_0 | x_t]
eps_y = left.predictor(schedule)  # E[eps | x_t, y], where y is that label


def sample(r):
    """From x_T = z, at each t: x_prev = a x_t + b eps_hat + sigma z. A slip changes a part of r."""
    g, s = np.random.default_rng(1), r.schedule
    x_t = r.gauss(g)
    for t in r.ts(s.T):
        eps_hat, z, sigma = r.eps_hat(x_t, t), r.gauss(g), r.sigma(t, s)
        x_0_hat, mean = x_0_from_eps(x_t, t, eps_hat, s), r.a(t, s) * x_t + r.b(t, s) * eps_hat
        yield sampler.Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, mean + sigma * z)
        x_t = mean + sigma * z


# DDPM's mean, (x_t - beta / noise eps_hat) / sqrt(alpha), has the a and b of `run`. That of DDIM,
# signal_prev x_0_hat + sqrt(noise_prev^2 - sigma^2) eps_hat, has the same a, and another b.
run: dict = {"of": "DDPM", "a": lambda t, s: s.alpha[t] ** -0.5, "b": reverse.mean_per_eps}
run |= {"sigma": lambda t, s: s.beta[t] ** 0.5 * (t > 1), "ts": lambda T: range(T, 0, -1)}
run |= {"gauss": lambda g: g.standard_normal((n, 2)), "schedule": schedule, "data": data}
run |= {"unit": 1, "bound": 1}  # the scale of the data, and 1 where the bound is defined
jump = run | {"of": "DDIM", "schedule": Schedule(signal[::10], noise[::10]), "bound": 0}
jump |= {"b": lambda t, s: s.noise[t - 1] - s.noise[t] / s.alpha[t] ** 0.5, "sigma": lambda t, s: 0}
label = run | {"of": "label", "data": left}
guide = label | {"of": "w = 1/2", "eps_hat": lambda x, t: 1.5 * eps_y(x, t) - eps_star(x, t) / 2}
state = train.start(mlp.init(rng, hidden=32, layers=2), predict="v")
update = partial(train.update, lr=0.02, hold=0.999, ema_decay=0.99)  # a rate that does not fall
steps = list(train.train(mlp, state, data.sample, schedule, rng, 1500, 128, update=update))
learn = run | {"of": "network", "eps_hat": reverse.predictor(mlp, state, schedule)}

# What the numbers need: noised data, E x_t^2 of a coordinate, P(|x_0| > 1), what a label changes.
x_0, eps = data.sample(m, rng, float), rng.standard_normal((m, 2))
x_2, x_10, x_25 = (q_sample(x_0, t, eps, schedule) for t in (2, 10, 25))
best_2, best_10, best_25 = eps_star(x_2, 2), eps_star(x_10, 10), eps_star(x_25, 25)
var = signal**2 * ((means**2).mean() + roll.noise**2) + noise**2
beyond = np.exp(normal.log_cdf((abs(means) - 1) / roll.noise)).mean()
change = eps_y(x_25, 25) - best_25
excess = (learn["eps_hat"](x_10, 10) - best_10) ** 2

# E x_t^2 is var[t] on the way back too. E[eps eps_hat] = E[eps_hat^2] for eps_hat = E[eps | x_t].
slip, clue = {}, []  # a run with a slip;    a number, its right value, how it is measured
slip["noise in the last step"] = run | {"sigma": lambda t, s: beta[t] ** 0.5}  # a thin haze
clue += [("(x_0 - mean)^2 in the last step", 0, lambda r: (r.last.x_prev - r.last.mean) ** 2)]
slip["variance for deviation"] = run | {"sigma": lambda t, s: beta[t] * (t > 1)}  # a thin arc
clue += [("(x_24 - mean)^2", beta[25], lambda r: (r.middle.x_prev - r.middle.mean) ** 2)]
slip["no 1 / sqrt(alpha)"] = run | {"a": lambda t, s: 1, "b": lambda t, s: -beta[t] / noise[t]}
clue += [("x_25^2", var[25], lambda r: r.middle.x_t**2)]  # x shrinks: too dense near the middle
slip["beta_tilde for beta"] = run | {"b": lambda t, s: -beta_tilde[t] / noise[t] / alpha[t] ** 0.5}
clue += [("(x_0 - x_0_hat)^2 in the last step", 0, lambda r: (r.last.x_prev - r.last.x_0_hat) ** 2)]
slip["eps added"] = run | {"b": lambda t, s: -reverse.mean_per_eps(t, s)}  # all points fly away
clue += [("x_50 x_49", alpha[50] ** 0.5 * var[49], lambda r: r.first.x_t * r.first.x_prev)]
slip["DDIM, no - sigma^2"] = run | {"b": jump["b"], "sigma": lambda t, s: beta_tilde[t] ** 0.5}
clue += [("x_49^2", var[49], lambda r: r.first.x_prev**2)]  # too wide: z is added to all of eps_hat
slip["t ascending"] = run | {"ts": lambda T: range(1, T + 1), "bound": 0}  # it stays noise
clue += [("eps_hat^2 in the first step", 1, lambda r: r.first.eps_hat**2)]
slip["never starts at T"] = jump | {"schedule": Schedule(signal[:T:10], noise[:T:10])}  # strays
clue += [("signal at the first t", signal[T], lambda r: r.schedule.signal[r.first.t])]
slip["never ends at 0"] = jump | {"ts": lambda T: range(T, 1, -1)}  # a haze: x_10 is not x_0
clue += [("t_prev in the last step", 0, lambda r: r.last.t_prev)]
slip["uniform noise"] = run | {"gauss": lambda g: g.random((n, 2)), "bound": 0}  # a lump far off
clue += [("x_T", 0, lambda r: r.first.x_t)]
slip["terminal noise"] = label | {"schedule": linear(T)}  # lumps: its x_T is not pure noise
clue += [("x_T x_0", signal[T] * var[0], lambda r: q_sample(x_0, T, eps, r.schedule) * x_0)]
slip["clipped x_0"] = run | {  # a square
    "eps_hat": lambda x, t: (x - signal[t] * x_0_star(x, t).clip(-1, 1)) / noise[t]
}
clue += [("share of |x_0| > 1", beyond, lambda r: abs(r.last.x_prev) > 1)]
slip["t off by one"] = run | {"eps_hat": lambda x, t: eps_star(x, max(t - 1, 1))}  # it looks right
clue += [("eps eps_hat at t = 2", best_2**2, lambda r: eps * r.eps_hat(x_2, 2))]
slip["alpha_bar for its root"] = run | {"trained": Schedule(signal**2, noise**2)}  # a haze
clue += [("x_25^2 in training", var[25], lambda r: q_sample(x_0, 25, eps, r.trained) ** 2)]
slip["another schedule"] = run | {"trained": linear(T, 0.002, 0.4)}  # told t, not the level
clue += [("eps eps_hat at t = 25", best_25**2, lambda r: eps * r.eps_hat(x_25, 25))]
# A lump. eps_hat = noise x_t + signal v, where signal v = eps_star - noise x_t gets a minus.
slip["sign of v"] = run | {"eps_hat": lambda x, t: noise[t] * x - (eps_star(x, t) - noise[t] * x)}
clue += [("eps eps_hat at t = 10", best_10**2, lambda r: eps * r.eps_hat(x_10, 10))]
slip["guidance w for 1 + w"] = guide | {"eps_hat": lambda x, t: (eps_y(x, t) + eps_star(x, t)) / 2}
clue += [("(1 + w) change", 1.5 * change, lambda r: r.eps_hat(x_25, 25) - best_25)]
slip["labels shuffled"] = label | {"eps_hat": eps_star}  # it ignores a label that tells nothing
clue += [("change^2, by a label", change**2, lambda r: (r.eps_hat(x_25, 25) - best_25) ** 2)]
slip["data not scaled"] = run | {"data": big, "unit": 40}  # a dense middle
clue += [("x_0^2", var[0], lambda r: r.data.sample(m, rng, float) ** 2)]
slip["theta for ema"] = learn | {"eps_hat": reverse.predictor(mlp, state.params, schedule, "v")}
clue += [("excess at t = 10", excess, lambda r: (r.eps_hat(x_10, 10) - best_10) ** 2)]  # a haze

sets = [data.sample(n, rng, float) for _ in range(6)]
print(f"{'Samples':26}{'energy distance':>16}{'95% within':>12}{'bound, nats':>13}")
print("  {:24}{:16.2g} +- {:.1g}".format("data from data", *metrics.real_against_real(sets)))
runs = {}
for name, case in ({r["of"]: r for r in (run, jump, label, guide, learn)} | slip).items():
    s, g = case["schedule"], np.random.default_rng(2)
    r = runs[name] = SimpleNamespace(**{"trained": s} | case)
    r.eps_hat = case.get("eps_hat") or r.data.predictor(r.trained)  # exact, unless given
    back = list(sample(r))
    r.first, r.middle, r.last = back[0], back[len(back) // 2], back[-1]
    drawn, fresh = r.last.x_prev / r.unit, r.data.sample(n, g, float) / r.unit
    r.clouds = [draw.Dots("", fresh, draw.CLOUD), draw.Dots("", drawn, draw.MODEL)]
    r.reverse = lambda x_t, t, r=r, s=s: (
        r.a(t, s) * x_t + r.b(t, s) * r.eps_hat(x_t, t),
        r.sigma(t, s) ** 2 or s.beta[1],  # not 0 at t = 1, where there would be no density
    )
    terms = likelihood.bound(r.data.sample(200, g, float), s, r.reverse, g)
    bound = f"{sum(nats.mean() for _, nats in terms) - 2 * np.log(r.unit):13.2f}" * r.bound
    reach = np.percentile(metrics.distance_to_curve(drawn, roll, 1000), 95)
    print(f"  {name:24}{metrics.energy_distance(drawn, fresh):16.2g}{reach:12.2g}{bound}")

print("Without a slip the samplers are the book's; each number without a slip, and with it")
g = np.random.default_rng(1)
*_, book = sampler.ddpm(eps_star, g.standard_normal((n, 2)), schedule, g, "beta")
lesson.equal("x_0 of sample = x_0 of ddpm", runs["DDPM"].last.x_prev, book.x_prev)
*_, book = sampler.ddim(eps_star, runs["DDIM"].first.x_t, schedule, steps=5)
lesson.equal("x_0 of sample = x_0 of ddim", runs["DDIM"].last.x_prev, book.x_prev)
t = np.arange(1, T + 1)  # and DDIM with eta = 1, where sigma^2 is beta_tilde, has the b of DDPM
ddim_b = (noise[t - 1] ** 2 - beta_tilde[t]) ** 0.5 - noise[t] / alpha[t] ** 0.5
lesson.equal("sqrt(noise_prev^2 - beta_tilde) - a noise = b", ddim_b, run["b"](t, schedule))
clouds = {"correct": runs["DDPM"].clouds}
for k, (name, (what, value, measure)) in enumerate(zip(slip, clue, strict=True), 1):
    own, found = (np.atleast_2d(measure(runs[key]) - value) for key in (slip[name]["of"], name))
    error, right = own.mean(axis=1).std() / len(own) ** 0.5, float(np.mean(value))
    lesson.equal(f"{k} {what}", right + own.mean(), right, error=max(error, 1e-12))  # 0: not drawn
    print(f"     {name:45}{right + found.mean():13.6g}")
    clouds[f"{k} {name}\n{right + found.mean():.2g}, not {right:.2g}"] = runs[name].clouds
draw.cloud_grid(
    "out/lessons/15.png",
    clouds,
    "Grey: data, those with one label in 11, 17 and 18. Orange: samples. Below each slip stands "
    "the number that gives it away, and its right value. 1 and 13 look right, and 5 lies far "
    "outside. 4, 14 and 20 look alike: their numbers tell which is which.",
)
print("out/lessons/15.png")

# Change this, and see:
#   12**0.5 * (g.random((n, 2)) - 0.5)   in 10: with mean 0 and variance 1, no figure tells it apart
#   linear(T, 0.002, 0.4)                in 11: x_T x_0 is 0.0035, and the energy distance 0.001
#   hold=0                               the rate falls to 0: in 20 theta has 0.0138, ema 0.0136
