"""My samples look wrong: which mistake is it?

Measure a number whose right value is known. Twenty classic slips are planted below, one at a time;
an exact predictor gives some of the right values. Some clouds still look right, and the energy
distance and the bound miss some slips, but for each there is a number that gives it away.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson, metrics

lesson.begin(__doc__)

from functools import partial
from types import SimpleNamespace

import numpy as np

from npdiff import exact, likelihood, loss, normal, output, reverse, sampler, train
from npdiff.forward import q_sample, x_0_from_eps
from npdiff.nn import mlp
from npdiff.schedule import Schedule, cosine, linear

rng, n, m, T, schedule = np.random.default_rng(0), 500, 4000, 50, cosine(50)
signal, noise, alpha, beta = schedule.signal, schedule.noise, schedule.alpha, schedule.beta
roll = exact.SwissRoll(noise=0.5)
means = roll.curve(np.linspace(roll.U_MIN, roll.U_MAX, 100))  # the data: a Gaussian at each of
covs = np.tile(roll.noise**2 * np.eye(2), (100, 1, 1))  # 100 points of the roll
data, big = (exact.Mixture(np.full(100, 0.01), k * means, k**2 * covs) for k in (1, 40))
left = data.part(means[:, 0] < 0)  # the data that have one of two labels
eps_star, denoise = data.predictor(schedule), data.denoiser(schedule)  # E[eps | x_t], E[x_0 | x_t]
eps_y = left.predictor(schedule)  # E[eps | x_t, y], where y is that label


# A step back, x_prev = a x_t + b eps_hat + sigma z, in the right sampler. s is its schedule.
def a(t, s):  # 1 / sqrt(alpha), in DDPM and in DDIM
    return 1 / s.alpha[t] ** 0.5


def b(t, s):  # DDPM's mean is (x_t - beta / noise eps_hat) / sqrt(alpha)
    return -s.beta[t] / s.noise[t] / s.alpha[t] ** 0.5


def sigma(t, s):  # sqrt(beta), and no noise in the last step
    return s.beta[t] ** 0.5 if t > 1 else 0.0


def sample(r):  # the sampler; r is a run, which may have a slip in a part
    g, s = np.random.default_rng(1), r.schedule
    x_t = r.gauss(g)
    for t in r.ts(s.T):
        eps_hat, z, sigma_t = r.eps_hat(x_t, t), r.gauss(g), r.sigma(t, s)
        x_0_hat, mean = x_0_from_eps(x_t, t, eps_hat, s), r.a(t, s) * x_t + r.b(t, s) * eps_hat
        yield sampler.Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma_t, z, mean + sigma_t * z)
        x_t = mean + sigma_t * z


def p_step(r, x_t, t):  # mean and variance of p(x_{t-1} | x_t), for the bound
    s = r.schedule
    variance = r.sigma(t, s) ** 2 if t > 1 else s.beta[1]  # at t = 1 sigma is 0: no density
    return r.a(t, s) * x_t + r.b(t, s) * r.eps_hat(x_t, t), variance


# The right runs, by their parts. A slip's run keeps "like", the name of the run it is compared to.
DDPM: dict = {"like": "DDPM", "a": a, "b": b, "sigma": sigma, "ts": lambda T: range(T, 0, -1)}
DDPM |= {"data": data, "schedule": schedule, "trained": schedule, "eps_hat": eps_star}
DDPM |= {"gauss": lambda g: g.standard_normal((n, 2)), "scale": 1, "bound": True}
tens = Schedule(signal[::10], noise[::10])  # t = 0, 10, ..., 50: five jumps
DDIM = DDPM | {"like": "DDIM", "schedule": tens, "eps_hat": data.predictor(tens), "bound": False}
# DDIM's mean is signal_prev (x_t - noise eps_hat) / signal + noise_prev eps_hat.
DDIM |= {"b": lambda t, s: s.noise[t - 1] - s.noise[t] / s.alpha[t] ** 0.5, "sigma": lambda t, s: 0}
LABEL = DDPM | {"like": "label", "data": left, "eps_hat": eps_y}
GUIDED = LABEL | {"like": "w = 1/2", "eps_hat": lambda x, t: 1.5 * eps_y(x, t) - eps_star(x, t) / 2}
state = train.start(mlp.init(rng, hidden=32, layers=2), predict="v")
update = partial(train.update, lr=0.02, hold=0.999, ema_decay=0.99)  # a rate that does not fall
steps = list(train.train(mlp, state, data.sample, schedule, rng, 1500, 128, update=update))
NETWORK = DDPM | {"like": "network", "eps_hat": reverse.predictor(mlp, state, schedule)}

# What the numbers need: noised data, E x_t^2 of a coordinate (on the way back too), P(|x_0| > 1).
x_0, eps = data.sample(m, rng, float), rng.standard_normal((m, 2))
x_2, x_10, x_25 = (q_sample(x_0, t, eps, schedule) for t in (2, 10, 25))
best_2, best_10, best_25 = eps_star(x_2, 2), eps_star(x_10, 10), eps_star(x_25, 25)
x_y = q_sample(left.sample(m, rng, float), 25, eps, schedule)  # x_25 of data with the label y
best_y, error_y = eps_star(x_y, 25), eps - eps_star(x_y, 25)  # without the label
var = signal**2 * ((means**2).mean() + roll.noise**2) + noise**2
beyond = np.exp(normal.log_cdf((abs(means) - 1) / roll.noise)).mean()
# eps - eps_star has the mean 0 given x_t. So E[eps f] = E[eps_star f] for each f(x_t), and
# E (f - eps_star)^2 is the excess of the loss, E (f - eps)^2 - E (eps_star - eps)^2. Given y too,
# eps_y stands for eps_star: its change of eps_star, squared, is what y saves of the loss.
saved = error_y**2 - (eps - eps_y(x_y, 25)) ** 2
out, _ = mlp.forward(state.ema_params, *output.network_input(x_10, 10, schedule))
held_out, _ = loss.l_simple(out, x_0, 10, eps, schedule, "v")  # the loss of ema on fresh data
excess = held_out[:, None] - (eps - best_10) ** 2

# The field guide. Each slip has its name and what one sees; the run with the slip, and the right
# formula; the number that gives it away, its right value, and how a run r is measured.
slip, clue = {}, {}
name = "1 noise in the last step"  # a haze as thin as the roll's own: it looks right
slip[name] = DDPM | {"sigma": lambda t, s: s.beta[t] ** 0.5}  # right: 0 where t = 1
clue[name] = "(x_0 - mean)^2 at t = 1", 0, lambda r: (r.last.x_prev - r.last.mean) ** 2
name = "2 variance for deviation"  # a thin arc: too little noise in each step
slip[name] = DDPM | {"sigma": lambda t, s: s.beta[t] * (t > 1)}  # right: beta[t] ** 0.5
clue[name] = "(x_24 - mean)^2", beta[25], lambda r: (r.middle.x_prev - r.middle.mean) ** 2
name = "3 no 1 / sqrt(alpha)"  # too dense near the middle: x shrinks. right: a(t, s) and b(t, s)
slip[name] = DDPM | {"a": lambda t, s: 1, "b": lambda t, s: b(t, s) * s.alpha[t] ** 0.5}
clue[name] = "x_25^2", var[25], lambda r: r.middle.x_t**2
name = "4 beta_tilde for beta"  # a haze: too little of eps_hat is taken away
slip[name] = DDPM | {"b": lambda t, s: b(t, s) / s.beta[t] * s.beta_tilde[t]}  # right: b(t, s)
clue[name] = "(x_0 - x_0_hat)^2 at t = 1", 0, lambda r: (r.last.x_prev - r.last.x_0_hat) ** 2
name = "5 eps added"  # nothing: all points fly away
slip[name] = DDPM | {"b": lambda t, s: -b(t, s)}  # right: b(t, s), which is negative
clue[name] = "x_50 x_49", alpha[50] ** 0.5 * var[49], lambda r: r.first.x_t * r.first.x_prev
name = "6 DDIM, no - sigma^2"  # a cloud too wide. right: b has sqrt(noise_prev^2 - sigma^2) in it
slip[name] = DDPM | {"b": DDIM["b"], "sigma": lambda t, s: s.beta_tilde[t] ** 0.5}
clue[name] = "x_49^2", var[49], lambda r: r.first.x_prev**2
name = "7 t ascending"  # noise, as at the start
slip[name] = DDPM | {"ts": lambda T: range(1, T + 1), "bound": False}  # right: T, ..., 1
clue[name] = "eps_hat^2 in the first step", 1, lambda r: r.first.eps_hat**2
name = "8 never starts at T"  # points stray between the turns. right: [::10], which ends with T
short = Schedule(signal[:T:10], noise[:T:10])
slip[name] = DDIM | {"schedule": short, "eps_hat": data.predictor(short)}
clue[name] = "signal at the first t", signal[T], lambda r: r.schedule.signal[r.first.t]
name = "9 never ends at 0"  # a haze: x_10 is not x_0
slip[name] = DDIM | {"ts": lambda T: range(T, 1, -1)}  # right: T, ..., 1
clue[name] = "t_prev in the last step", 0, lambda r: r.last.t_prev
name = "10 uniform noise"  # a lump far off
slip[name] = DDPM | {"gauss": lambda g: g.random((n, 2)), "bound": False}  # right: normal
clue[name] = "x_T", 0, lambda r: r.first.x_t
name = "11 terminal noise"  # lumps: its x_T is not pure noise, as the sampler has it
mild = linear(T)  # right: cosine(T), or betas 1000 / T times as large
slip[name] = LABEL | {"schedule": mild, "trained": mild, "eps_hat": left.predictor(mild)}
clue[name] = "x_T x_0", signal[T] * var[0], lambda r: q_sample(x_0, T, eps, r.trained) * x_0
name = "12 clipped x_0"  # a square. right: data outside of [-1, 1] are not clipped
slip[name] = DDPM | {"eps_hat": lambda x, t: (x - signal[t] * denoise(x, t).clip(-1, 1)) / noise[t]}
clue[name] = "share of |x_0| > 1", beyond, lambda r: abs(r.last.x_prev) > 1
name = "13 t off by one"  # it looks right
slip[name] = DDPM | {"eps_hat": lambda x, t: eps_star(x, max(t - 1, 1))}  # right: t
clue[name] = "eps eps_hat at t = 2", best_2**2, lambda r: eps * r.eps_hat(x_2, 2)
name = "14 alpha_bar for its root"  # a haze. right: signal and noise, whose squares sum to 1
squared = Schedule(signal**2, noise**2)
slip[name] = DDPM | {"trained": squared, "eps_hat": data.predictor(squared)}
clue[name] = "x_25^2 in training", var[25], lambda r: q_sample(x_0, 25, eps, r.trained) ** 2
name = "15 another schedule"  # too dense inside: the network is told t, not the level of noise
other = linear(T, 0.002, 0.4)  # right: one schedule in training and sampling
slip[name] = DDPM | {"trained": other, "eps_hat": data.predictor(other)}
clue[name] = "eps eps_hat at t = 25", best_25**2, lambda r: eps * r.eps_hat(x_25, 25)
name = "16 sign of v"  # a lump and strays. right: eps_hat = noise x_t + signal v, here with a minus
slip[name] = DDPM | {"eps_hat": lambda x, t: noise[t] * x - (eps_star(x, t) - noise[t] * x)}
clue[name] = "eps eps_hat at t = 10", best_10**2, lambda r: eps * r.eps_hat(x_10, 10)
name = "17 guidance w for 1 + w"  # too little guidance. right: (1 + w) eps_y - w eps_star
slip[name] = GUIDED | {"eps_hat": lambda x, t: 0.5 * eps_y(x, t) + 0.5 * eps_star(x, t)}
clue[name] = "change times error", 1.5 * saved, lambda r: (r.eps_hat(x_y, 25) - best_y) * error_y
name = "18 labels shuffled"  # all of the data: a label that tells nothing is ignored
slip[name] = LABEL | {"eps_hat": eps_star}  # right: eps_y
clue[name] = "change^2, by a label", saved, lambda r: (r.eps_hat(x_y, 25) - best_y) ** 2
name = "19 data not scaled"  # a dense middle, in which the turns are told apart late
slip[name] = DDPM | {"data": big, "eps_hat": big.predictor(schedule), "scale": 40}  # right: 1
clue[name] = "x_0^2", var[0], lambda r: r.data.sample(m, rng, float) ** 2
name = "20 theta for ema"  # a haze. right: state, whose ema_params the predictor takes
slip[name] = NETWORK | {"eps_hat": reverse.predictor(mlp, state.params, schedule, "v")}
clue[name] = "excess at t = 10", excess, lambda r: (r.eps_hat(x_10, 10) - best_10) ** 2

sets = [data.sample(n, rng, float) for _ in range(6)]
print(f"{'Samples':28}{'energy distance':>16}{'95% within':>12}{'bound, nats':>13}")
print("  {:26}{:16.2g} +- {:.1g}".format("data from data", *metrics.real_against_real(sets)))
runs = {}
for name, case in ({r["like"]: r for r in (DDPM, DDIM, LABEL, GUIDED, NETWORK)} | slip).items():
    r, g = SimpleNamespace(**case), np.random.default_rng(2)
    back, runs[name] = list(sample(r)), r
    r.first, r.middle, r.last = back[0], back[len(back) // 2], back[-1]
    drawn, fresh = r.last.x_prev / r.scale, r.data.sample(n, g, float) / r.scale
    r.clouds = [draw.Dots("", fresh, draw.CLOUD), draw.Dots("", drawn, draw.MODEL)]
    bound = ""
    if r.bound:
        terms = likelihood.bound(r.data.sample(200, g, float), r.schedule, partial(p_step, r), g)
        bound = f"{sum(nats.mean() for _, nats in terms) - 2 * np.log(r.scale):13.2f}"
    reach = np.percentile(metrics.distance_to_curve(drawn, roll, 1000), 95)
    print(f"  {name:26}{metrics.energy_distance(drawn, fresh):16.2g}{reach:12.2g}{bound}")

print("The samplers are the book's. Each number without its slip; below it, with the slip")
g, clouds = np.random.default_rng(1), {"correct": runs["DDPM"].clouds}
*_, book = sampler.ddpm(eps_star, g.standard_normal((n, 2)), schedule, g, "beta")
lesson.equal("x_0 of sample = x_0 of ddpm", runs["DDPM"].last.x_prev, book.x_prev)
*_, book = sampler.ddim(eps_star, runs["DDIM"].first.x_t, schedule, steps=5)
lesson.equal("x_0 of sample = x_0 of ddim", runs["DDIM"].last.x_prev, book.x_prev)
t = np.arange(1, T + 1)  # and DDIM with eta = 1, where sigma^2 is beta_tilde, has the b of DDPM
ddim_b = (noise[t - 1] ** 2 - schedule.beta_tilde[t]) ** 0.5 - noise[t] / alpha[t] ** 0.5
lesson.equal("sqrt(noise_prev^2 - beta_tilde) - a noise = b", ddim_b, b(t, schedule))
for name, (what, value, measure) in clue.items():
    own, found = (np.atleast_2d(measure(runs[k]) - value) for k in (slip[name]["like"], name))
    error, right = own.mean(axis=1).std() / len(own) ** 0.5, float(np.mean(value))
    lesson.equal(f"{name.split()[0]} {what}", right + own.mean(), right, error=max(error, 1e-12))
    print(f"     {name:45}{right + found.mean():13.6g}")
    clouds[f"{name}\n{right + found.mean():.2g}, not {right:.2g}"] = runs[name].clouds
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
