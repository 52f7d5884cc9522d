"""How are bits per dimension computed?

A pixel has one of 256 values, and a model gives each a probability: the mass of a Gaussian on that
grey level. -log2 of the mass is the pixel's length in bits under the best code. The bound adds what
the other steps cost, L_T + ... + L_0 in nats: divide by the pixels and by log 2. A model with a
density is scored on pixels to which uniform noise of one level is added, and pays for that noise.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import math

import numpy as np

from lab.mnist import to_model
from npdiff import normal
from npdiff.forward import prior_kl, q_sample
from npdiff.likelihood import discretised_decoder, gaussian_decoder, step_kl
from npdiff.nn.params import unflatten
from npdiff.papers import improved_ddpm, vdm
from npdiff.schedule import uniform_log_snr

rng = np.random.default_rng(0)

k, m, s = np.arange(256), 40.3, 1.7
print(f"One pixel: p(x_0 | x_1) = N({m}, {s}^2) in grey levels; level k is x_0 = k / 127.5 - 1")
cdf = [0.5 * (1 + math.erf((e - m) / (s * math.sqrt(2)))) for e in k[:-1] + 0.5]  # Phi at the edges
mass = np.diff([0.0, *cdf, 1.0])  # (256,)   the two end levels take the tails
mean_1, var_1 = m / 127.5 - 1, (s / 127.5) ** 2  # of p(x_0 | x_1)
log_p = discretised_decoder(k / 127.5 - 1, mean_1, var_1)  # (256,) in nats
lesson.equal("P(k) = Phi(upper edge) - Phi(lower edge)", mass, np.exp(log_p))
lesson.equal("the 256 masses sum to 1", np.exp(log_p).sum(), 1.0)
near = np.abs(k - m) < 3 * s  # (10 levels)   far out `mass` is a difference of equals
bits = -log_p * normal.BITS
lesson.equal("-log2 P(k) = nats / log 2", -np.log2(mass[near]), bits[near])
print(f"  level 40: mass {mass[40]:.3f}, {bits[40]:.2f} bits. Without a model: 1/256, so 8 bits")

print("Dequantised: the density at k + u, u uniform on one level, in the place of level k's mass")
nodes, weights = np.polynomial.legendre.leggauss(16)  # means over u, here exact to rounding
at_z = gaussian_decoder((k[near, None] + nodes / 2) / 127.5 - 1, mean_1, var_1)  # log density
P = np.exp(at_z) @ weights / 2 / 127.5  # a level is 1/127.5 wide
lesson.equal("P(k) = E_u[density] / 127.5", P, mass[near])
dequantised = math.log2(127.5) - at_z @ weights / 2 * normal.BITS
square = (k[near] - m) ** 2 + 1 / 12  # E_u (k + u - m)^2, where 1/12 is the variance of u
in_levels = 0.5 * math.log2(2 * math.pi * s**2) + square / (2 * s**2) * normal.BITS
lesson.equal("-E_u[log2 density] + log2(127.5), by hand", in_levels, dequantised)
gap = dequantised - bits[near]  # the mean of a logarithm lies below the logarithm of the mean
print(f"  so it is never below the bits of the pixel: by {gap.min():.4f} to {gap.max():.4f} above")
# Over a level the log density has the slope -(k - m) / s^2, of mean square 1 / s^2. Jensen's gap is
# half its variance over u, 1/2 1/12 1/s^2, and what follows is of the order of that squared.
for wide in (1.0, 2.0, 4.0):  # the mean gap in nats, over the levels that N(127.5, wide^2) draws
    log_p = discretised_decoder(k / 127.5 - 1, 0.0, (wide / 127.5) ** 2)
    cost = 0.5 * np.log(2 * np.pi * wide**2) + ((k - 127.5) ** 2 + 1 / 12) / (2 * wide**2)
    left, right = np.exp(log_p) @ (cost + log_p), 1 / (24 * wide**2)
    lesson.equal(f"mean gap at s = {wide:.0f}: 1 / (24 s^2) nats", left, right, within=2 * right**2)

print("Ten digits of MNIST, and a network trained on the bound. One of its KLs by hand")
schedule, digits = uniform_log_snr(T=1000), np.load(Path(__file__).with_name("13_digits.npz"))
x_0 = to_model(digits["x"])  # (10, 28, 28, 1) float32: level k is k / 127.5 - 1
theta = np.load(Path(__file__).parents[1] / "mnist_bound_weights.npz")["theta"]
params = unflatten(theta.astype(np.float32), vdm.init(rng))
reverse = improved_ddpm.reverse(vdm, params, schedule, predict="v")  # mean, var of p(x_{t-1} | x_t)
digit, t = x_0[3:4].astype(np.float64), 300
x_300 = q_sample(digit, t, rng.standard_normal(digit.shape), schedule)
mean, var = reverse(x_300, t)
alpha, beta = schedule.alpha[t], schedule.beta[t]
signal, noise = schedule.signal[t - 1], schedule.noise[t - 1]
# q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0) up to a factor: precisions add.
var_q = 1 / (alpha / beta + 1 / noise**2)
mean_q = var_q * (np.sqrt(alpha) / beta * x_300 + signal / noise**2 * digit)
kl = 0.5 * (np.log(var / var_q) - 1 + (var_q + (mean_q - mean) ** 2) / var)
lesson.equal("L_{t-1} = KL(q || p)", kl.sum(), step_kl(digit, x_300, t, schedule, reverse)[0])

parts, T, unit = 10, schedule.T, normal.BITS / x_0[0].size
print(f"The ledger in bits a pixel: t = 2..{T} in {parts} parts, one t of each part for each digit")
L_T = prior_kl(x_0, schedule) * unit  # (10,)
x_1 = q_sample(x_0, 1, rng.standard_normal(x_0.shape, dtype=np.float32), schedule)
L_0 = -discretised_decoder(x_0, *reverse(x_1, 1)).reshape(10, -1).sum(axis=1) * unit
edges = np.linspace(2, T + 1, parts + 1)
width, ts, terms = np.diff(edges)[:, None], np.zeros((parts, 10), int), np.zeros((parts, 10))
for j in range(parts):
    ts[j] = np.floor(rng.uniform(edges[j], edges[j + 1], 10))
    x_t = q_sample(x_0, ts[j], rng.standard_normal(x_0.shape, dtype=np.float32), schedule)
    terms[j] = step_kl(x_0, x_t, ts[j], schedule, reverse) * unit
ledger = np.vstack([L_T, (width * terms)[::-1], L_0])  # (12, 10)
names = [f"t = {math.ceil(edges[j])}..{math.ceil(edges[j + 1]) - 1}" for j in range(parts)]
print(f"{'digit':>14}" + "".join(f"{label:7}" for label in digits["label"]) + "   mean")
for name, row in zip(["L_T", *names[::-1], "L_0"], ledger, strict=True):
    print(f"{name:>14}" + (11 * "{:7.3f}").format(*row, row.mean()))
print(f"{'total':>14}" + (11 * "{:7.3f}").format(*ledger.sum(axis=0), ledger.sum() / 10))

print("Every t, stored: 0.988 +- 0.002 over t = 2..1000, made by this file, parts = T - 1")
every = digits["nats"].astype(np.float64) * unit  # (999, 10)   L_{t-1} of each digit at every t
part = np.searchsorted(edges, np.arange(2, T + 1), side="right") - 1  # the part of each t
# A digit's sum over a part is its width times one drawn term: the terms vary with t and with eps.
spread = np.array([every[part == j].var(axis=0) for j in range(parts)])  # (parts, 10)
few_error = np.sqrt((width**2 * spread).sum()) / 10  # of the mean over the ten digits
# The sum over every t varies with the eps of each t alone. L_{t-1} changes little from one t to the
# next, so neighbours differ by their eps: by twice its variance, in the mean square.
of_eps = np.diff(every, axis=0) ** 2 / 2  # (998, 10)
whole_error = np.sqrt(of_eps.sum()) / 10
few, whole, error = (width * terms).sum() / 10, every.sum() / 10, np.hypot(few_error, whole_error)
lesson.equal(f"sum of L_{{t-1}}, by {parts} t = by every t", few, whole, error=error)
print(
    f"  standard errors {few_error:.3f} and {whole_error:.4f}; all 10,000 test digits: 0.978 in all"
)

levels = np.linspace(33, 48, 200)
edge, height = np.repeat(k[33:49] - 0.5, 2)[1:-1], np.repeat(mass[33:48], 2)
density = np.exp(normal.log_prob(levels, m, s**2))
pixel = [draw.Series("density", levels, density, draw.EXACT), draw.Series("mass", edge, height)]
few_t = np.stack([ts.ravel(), terms.ravel()], axis=1)
steps = [
    draw.Series("every t, mean of ten digits", np.arange(2, T + 1), every.mean(axis=1), draw.DATA),
    draw.Dots(f"{parts} t of each digit", few_t, draw.MODEL, 0.9, 2.0),
]
draw.board(
    "out/lessons/13.png",
    [
        draw.View(f"One pixel: N({m}, {s}^{{2}})", pixel, "grey level k", "probability"),
        draw.View("What a step costs", steps, "step t", "L_{t-1} in bits a pixel"),
    ],
    "Left: the mass of a grey level is the area below the density over it; -log_{2} of the mass is "
    "the pixel's length in bits. Right: the steps of the bound. Noise lies evenly in log(noise / "
    f"signal), so the early steps cost alike. A sum over {T - 1} t is estimated from {parts} t.",
    height=300,
)
print("out/lessons/13.png")

# Change this, and see:
#   s = 0.5 for 1.7     level 40 takes 0.74 bits; dequantised, a level takes up to 1.2 bits more
#   parts = 50 for 10   the standard error falls from 0.021 to 0.008, in five times the time
