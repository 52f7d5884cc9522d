"""Why the cosine schedule, and how many steps?

When the level rises by 1, noise destroys loss_t nats of what x_t tells of x_0, and a step in which
the level rises far is costly. The linear schedule passes the costly levels in a few steps and then
has nothing left to do. The cosine schedule spreads the work. With both, the bound's gap and the
samples' error fall as 1 / T, and cosine needs half as many steps for the same bound.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff import exact, normal
from npdiff.forward import prior_kl
from npdiff.likelihood import best_variance, terms_from_loss
from npdiff.reverse import p_mean_from_eps
from npdiff.sampler import ddim
from npdiff.schedule import Schedule, cosine, linear

print("The schedules at T = 1000: log SNR = log(signal^2 / noise^2) = -2 level")
T = 1000
log_snr = {"linear": -2 * linear(T).level[1:], "cosine": -2 * cosine(T).level[1:]}
alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, T))  # linear: of t = 1..T
lesson.equal("linear: log SNR", np.log(alpha_bar / (1 - alpha_bar)), log_snr["linear"])
angle = np.pi / 2 * (np.arange(T + 1) / T + 0.008) / 1.008  # cosine: from nearly 0 to 90 degrees
alpha_bar = np.cos(angle[1:]) ** 2 / np.cos(angle[0]) ** 2
lesson.equal("cosine, t < T", np.log(alpha_bar / (1 - alpha_bar))[:-1], log_snr["cosine"][:-1])
# At 90 degrees alpha_bar_T is 0, x_T holds nothing of x_0, and the mean of a reverse step divides
# by sqrt(alpha_T) = 0. So beta_T is clipped at 0.999, and signal_T is sqrt(0.001) signal_{T-1}.
signal_T = np.sqrt(0.001) * np.sin(np.pi / 2 / T / 1.008) / np.cos(angle[0])
lesson.equal("cosine: signal_T after the clip", signal_T, cosine(T).signal[T], within=1e-12)
for name, y in log_snr.items():
    print(f"  {name}: log SNR at t = 250, 500, 750, 1000:", *y[249::250].round(2))

print("What x_t tells of x_0: I = entropy of x_t - entropy of its noise, in nats")
info = normal.entropy(1.0) - normal.entropy(cosine(T).noise[1:] ** 2)  # such an x_t stays N(0, 1)
lesson.equal("N(0, 1): I = 1/2 log(1 + SNR)", info, 0.5 * np.log1p(np.exp(log_snr["cosine"])))
# Now data of three peaks 0.15 wide, with mean 0 and variance 1. Sums over the grid x are exact.
peak = np.sqrt((1 - 0.15**2) / 0.6)
data = exact.Mixture([0.3, 0.4, 0.3], [[-peak], [0.0], [peak]], np.full((3, 1, 1), 0.15**2))
x, dx = np.linspace(-9, 9, 1201)[:, None], 0.015  # x: (1201, 1)


def log_q(level):  # (1201,): the log-density of x_t at x, where signal^2 + noise^2 = 1
    return data.log_prob(x, (1 + np.exp(2 * level)) ** -0.5, (1 + np.exp(-2 * level)) ** -0.5)


def mean(value, level):  # E[value(x_t)]
    return (np.exp(log_q(level)) * value).sum() * dx


# In y = x_t / signal = x_0 + sigma eps every Gaussian, and so q, obeys dq/dsigma = sigma q''. By
# parts, the entropy of y rises by sigma E[score^2] dsigma = E[eps*^2] dlevel, and that of sigma eps
# by dlevel. So dI/dlevel = E[eps*^2] - E[eps^2] = -E Var[eps | x_t] = -loss.
edges = np.linspace(-5.0, 3.0, 9)
level, weight = exact.gauss_legendre(edges)  # 16 nodes between two edges
signal, noise = (1 + np.exp(2 * level)) ** -0.5, (1 + np.exp(-2 * level)) ** -0.5
s = Schedule(np.append(1.0, signal), np.append(0.0, noise))
loss = [mean(data.irreducible_loss(x, t, s), s.level[t]) for t in range(1, s.T + 1)]
integral = (weight * loss).reshape(8, 16).sum(axis=1)
info = [mean(-log_q(each), each) for each in edges] - normal.entropy(1 / (1 + np.exp(-2 * edges)))
lesson.equal("fall of I from edge to edge = integral of loss", -np.diff(info), integral)

print("T steps of a perfect predictor: the gap, bound - entropy; the error of samples by ddim")
right = x[:, 0] + dx / 2  # (1201,): the right edge of each cell, up to which a sum gives the cdf
cdf_0 = np.cumsum(np.exp(data.log_prob(x))) * dx
cdf_T = np.exp(normal.log_cdf(right))
u = (np.arange(1000) + 0.5) / 1000  # 1,000 quantiles stand for all draws
x_0 = np.interp(u, cdf_0, right)[:, None]  # (1000, 1): of the data
x_T = np.interp(u, cdf_T, right)[:, None]  # of N(0, 1)
# "linear" has beta multiplied by 1000 / T; in "unscaled" it ends at 0.02, whatever T is.
families = {"linear": lambda T: linear(T, 0.1 / T, 20 / T), "unscaled": linear, "cosine": cosine}
Ts = np.array([200, 100, 50, 25])
gap, sample_error = np.zeros((3, 4)), np.zeros((3, 4))  # (families, Ts)
L_T, I_T, kl_T = np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 4))
destroyed, cost = {T: {} for T in Ts}, {T: {} for T in Ts}
for i, (name, family) in enumerate(families.items()):
    for j, T in enumerate(Ts):
        s, ts = family(T), range(1, T + 1)
        loss = np.append(0.0, [mean(data.irreducible_loss(x, t, s), s.level[t]) for t in ts])
        terms = terms_from_loss(loss, s, best_variance(loss, s))
        info = [mean(-log_q(each), each) for each in s.level[1:]] - normal.entropy(s.noise[1:] ** 2)
        destroyed[T][name] = -np.diff(info)  # by the steps t = 2..T
        cost[T][name] = terms[2:] - destroyed[T][name]
        L_T[i, j], I_T[i, j] = mean(prior_kl(x, s), -np.inf), info[-1]  # x_0 has level -infinity
        gap[i, j] = L_T[i, j] + terms.sum() - data.entropy()
        log_ratio = log_q(s.level[T]) - normal.log_prob(x[:, 0], 0.0, 1.0)
        kl_T[i, j] = mean(log_ratio, s.level[T])  # KL(q(x_T) || N(0, 1))
        *_, step = ddim(data.predictor(s), x_T, s, steps=T)
        sample_error[i, j] = np.abs(np.sort(step.x_prev, axis=0) - x_0).mean()  # of a quantile
    T_gap, T_error = (Ts * gap[i]).round(1), (Ts * sample_error[i]).round(1)
    print(f"  {name:9} T {Ts}: T*gap {T_gap}, T*error {T_error}")
# A rule of thumb. T*gap and T*error hardly depend on T, so ten times the steps leave a tenth of the
# gap and of the error. Pictures take hundreds of ancestral steps, and tens of DDIM's: see 09.
for i in (0, 2):
    wanted = Ts[0] * gap[i, 0] / np.array([0.1, 0.01])
    print(
        f"  {list(families)[i]}: a gap of 0.1 takes {wanted[0]:.0f} steps, of 0.01 {wanted[1]:.0f}"
    )
# q is Markov, so I(x_0; x_{t-1}) - I(x_0; x_t) is the mean KL(q(x_{t-1} | x_t, x_0) || q(x_{t-1} |
# x_t)): the term of a perfect reverse step. A Gaussian in its place costs another KL.
t = 2 + cost[T][name].argmax().item()  # of the last schedule: cosine, T = 25
log_joint = log_q(s.level[t - 1]) + normal.log_prob(x, s.alpha[t] ** 0.5 * x.T, s.beta[t])
mu = p_mean_from_eps(x, t, data.predictor(s)(x, t), s)  # rows are x_t, and columns x_{t-1}
log_p = normal.log_prob(x.T, mu, best_variance(loss, s)[t])
kl = (np.exp(log_joint) * (log_joint - log_q(s.level[t])[:, None] - log_p)).sum() * dx**2
total = destroyed[T][name][t - 2] + kl
lesson.equal(f"{name}, step {t} of {T}: L_{{t-1}} = destroyed + KL", terms[t], total)

print("Terminal noise: L_T is what x_T tells of x_0, and the cost of starting from N(0, 1)")
lesson.equal("L_T = I(x_0; x_T) + KL(q(x_T) || N(0, 1))", L_T, I_T + kl_T, within=1e-12)
a = np.array([linear(T).alpha_bar[T] for T in Ts])
# 100 equal pixels: x_T has the variance 1 + 99 alpha_bar along them, and 1 - alpha_bar across.
kl_pixels = (99 * normal.kl(0.0, 1 - a, 0.0, 1.0) + normal.kl(0.0, 1 + 99 * a, 0.0, 1.0)) / 100
print(f"  unscaled, T = {Ts}: alpha_bar_T {a.round(3)}, L_T {L_T[1].round(3)}")
print(f"  KL {kl_T[1].round(3)}, but for 100 equal pixels {kl_pixels.round(3)} a pixel")

starts = {"L_{T}": L_T[1], "KL, pixels": kl_pixels, "KL, 3 peaks": kl_T[1]}
colors = {"linear": draw.DATA, "cosine": draw.MODEL, "L_{T}": draw.INK, "KL, pixels": draw.DATA}
at, views = np.arange(2, 201) / 200, []
for title, axis, lines, *rest in (
    ("T = 1000", np.arange(1, 1001), log_snr.items(), "step t", "log SNR"),
    ("Destroyed by a step", at, destroyed[200].items(), "t / 200", "nats", 0, 1, (0, 1, 1e-5, 1)),
    ("Cost of a step", at, cost[200].items(), "t / 200", "nats", 0, 1, (0, 1, 1e-7, 0.01)),
    ("Bound", Ts, zip(families, gap, strict=True), "T", "bound \u2212 entropy, nats", 1, 1),
    (
        "Samples",
        Ts,
        zip(families, sample_error, strict=True),
        "T",
        "mean error of a quantile",
        1,
        1,
    ),
    ("Start, unscaled", Ts, starts.items(), "T", "nats a coordinate", 1),
):
    marks = [draw.Series(key, axis, y, colors.get(key, draw.EXACT), 2.0) for key, y in lines]
    views += [draw.View(title, marks, *rest)]
caption = (
    "Linear loses its signal early: few of its steps pass the costly levels, and half of them do "
    "next to nothing. Cosine needs half as many steps for the same bound. Unscaled destroys less, "
    "so it has less way to go, and its bound is the closest. But its samples pay for their start "
    "from N(0, 1), unless T is large; and where pixels are alike, most of L_{T} is lost."
)
draw.board("out/lessons/08.png", views, caption, columns=3)
print("out/lessons/08.png")

# Change this, and see:
#   0.5**2 for 0.15**2, twice: nearly Gaussian data     T*gap falls from 2.6 to 0.1
#   "cosine": lambda T: uniform_log_snr(T, -5.0, 5.0)   (import it too) T*gap 4.5: equal steps of
#                                                       level are worse
