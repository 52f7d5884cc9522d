"""What sets a diffusion apart from a VAE, a GAN and a flow; discriminative or generative models?

A discriminative model learns p(y | x); a generative one p(x), from which it can draw. A VAE bounds
log p(x) by an encoder that it learns, a diffusion by one that is fixed, in many steps. A flow can
be inverted, so its log p(x) is exact. A GAN has no log p(x), only a classifier of its draws.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

from functools import partial

import numpy as np

from npdiff import normal, train
from npdiff.exact import Gaussian, Mixture, SwissRoll
from npdiff.forward import q_marginal, q_sample
from npdiff.likelihood import fixed, path
from npdiff.nn import mlp
from npdiff.papers.score_sde import exact_divergence, ode_log_prob, perfect
from npdiff.reverse import predictor
from npdiff.sampler import ddpm
from npdiff.schedule import Schedule, uniform_log_snr

rng, n = np.random.default_rng(0), 1000
roll = SwissRoll()

print("Generative: p(x | y) p(y) of each class y. Discriminative: p(y | x), by Bayes' rule")
means = np.array([[-1.0, 0.0], [1.0, 0.8]])  # of class 0 and class 1
cov = np.array([[1.0, 0.3], [0.3, 0.6]])  # of both
y = np.repeat([0, 1], n)  # a labelled set, with p(y) = 1/2
x = means[y] + Gaussian(np.zeros(2), cov).sample(2 * n, rng, np.float64)
both = Mixture([0.5, 0.5], means, [cov, cov])  # p(x) = sum_y p(x | y) p(y)
w = np.linalg.solve(cov, means[1] - means[0])  # log p(x | 1) - log p(x | 0) = w x + b
b = -w @ means.mean(axis=0)
p_1 = 0.5 * np.exp(Gaussian(means[1], cov).log_prob(x) - both.log_prob(x))  # p(x | 1) p(1) / p(x)
lesson.equal("p(1 | x) = 1 / (1 + exp(-w x - b))", p_1, 1 / (1 + np.exp(-x @ w - b)))
inputs = np.column_stack([x, np.ones(2 * n)])
theta = np.zeros(3)  # w and b, to be learned
for _step in range(8):  # a classifier learns it: Newton's method on the sum of -log p(y | x)
    p_hat = 1 / (1 + np.exp(-inputs @ theta))
    grad = inputs.T @ (p_hat - y)  # by hand: the error times the input
    hessian = (inputs.T * p_hat * (1 - p_hat)) @ inputs
    theta = theta - np.linalg.solve(hessian, grad)
lesson.equal("(w, b), learned", theta, np.array([*w, b]), np.diag(np.linalg.inv(hessian)) ** 0.5)
m_hat = np.stack([x[y == k].mean(axis=0) for k in (0, 1)])  # a generative model learns p(x | y)
lesson.equal("means of p(x | y), learned", m_hat, means, np.sqrt(np.diag(cov) / n))
learned = Mixture([0.5, 0.5], m_hat, [np.cov((x - m_hat[y]).T)] * 2)
far = np.array([[4.5, -4.0]])  # of neither class, as p(x) tells and p(y | x) does not
p_far = 1 / (1 + np.exp(-far @ theta[:2] - theta[2]))
log_far = learned.log_prob(far)
print(f"  at {far[0]} p(1 | x) is {p_far[0]:.3f}, and log p(x) {log_far[0]:.0f}; ", end="")
print(f"in the labelled set it is {learned.log_prob(x).min():.0f} or more")

print("GAN: its discriminator D is such a classifier, of real x ~ p (y = 1) against made x ~ q")
grid = np.mgrid[-10:10:401j, -10:10:401j].reshape(2, -1).T  # in steps of 0.05
log_q, log_p = (Gaussian(mean, cov).log_prob(grid) for mean in means)
log_half = both.log_prob(grid)  # log (p + q) / 2
p, q = np.exp(log_p) * 0.05**2, np.exp(log_q) * 0.05**2  # the mass of each cell
js = (p @ (log_p - log_half) + q @ (log_q - log_half)) / 2  # half of two KLs
# p log D + q log(1 - D) has the derivative 0 where p / D = q / (1 - D): D = p / (p + q).
value = p @ np.log(1 / (1 + np.exp(-grid @ w - b))) + q @ np.log(1 / (1 + np.exp(grid @ w + b)))
lesson.equal("E_p log D + E_q log(1 - D) = 2 JS - 2 log 2", value, 2 * js - 2 * np.log(2))
scores = np.stack([np.log(p_hat[y == 1]), np.log(1 - p_hat[y == 0])])  # of draws, by the learned D
lesson.equal("its estimate", scores.sum() / n, value, np.hypot(*scores.std(axis=1)) / np.sqrt(n))

print("VAE: z ~ N(0, 1), x ~ N(W z + mu, s2). A linear one is best by eigenvalues (PPCA)")
data = roll.sample(20_000, rng, np.float64)
test = roll.sample(n, rng, np.float64)
mu = data.mean(axis=0)
values, axes = np.linalg.eigh(np.cov(data.T, bias=True))
s2 = values[0]  # what the shorter axis of the data varies by
W = np.sqrt(values[1] - values[0]) * axes[:, 1]  # along the longer axis, what it varies by beyond
cov_x = np.outer(W, W) + s2 * np.eye(2)  # in the plane this is the covariance of the data
vae = Gaussian(mu, cov_x)  # p(x), with z integrated out
lesson.equal("-E log p(x) = 1/2 log det(2 pi e cov)", -vae.log_prob(data).mean(), vae.entropy())
best, h, slopes = np.array([*W, s2]), 1e-4, np.zeros(3)
for j, step in enumerate(h * np.eye(3)):  # the likelihood is highest there: W[0], W[1] and s2 moved
    up, down = (
        Gaussian(mu, np.outer(moved[:2], moved[:2]) + moved[2] * np.eye(2)).log_prob(data)
        for moved in (best + step, best - step)
    )
    slopes[j] = (up - down).mean() / (2 * h)  # errs by h^2 times a third derivative, below 1 / h
lesson.equal("d E log p(x) / d(W, s2) = 0", slopes, np.zeros(3), within=h)
mean_z = (test - mu) @ W / (W @ W + s2)  # of p(z | x), by Bayes
var_z = s2 / (W @ W + s2)
for name, v in (("p(z | x)", var_z), ("too narrow", 0.1 * var_z)):  # two encoders q(z | x)
    log_x = normal.log_prob(test, mu + mean_z[:, None] * W, s2).sum(axis=1) - W @ W * v / s2 / 2
    elbo = log_x - normal.kl(mean_z, v, 0.0, 1.0)  # E_q log p(x | z) - KL(q || p(z))
    gap = normal.kl(mean_z, v, mean_z, var_z)  # KL(q || p(z | x))
    lesson.equal(f"q {name}: ELBO + gap = log p(x)", elbo + gap, vae.log_prob(test))

print("Flow: x = A z + mu can be inverted, and log p(x) = log N(z) - log |det A|")
A = np.linalg.cholesky(cov_x)
z = np.linalg.solve(A, (test - mu).T).T
flow = normal.log_prob(z, 0.0, 1.0).sum(axis=1) - np.log(np.linalg.det(A))
lesson.equal("a linear flow's log p(x) = the linear VAE's", flow, vae.log_prob(test))
schedule, half = uniform_log_snr(50, -4.0, 4.5), uniform_log_snr(25, -4.0, 4.5)
ode, rough = (ode_log_prob(perfect(vae, s), test, s) for s in (schedule, half))
within = np.abs(ode - rough).max() / 2  # of order 2: half the steps err some 4 times as much
lesson.equal("an ODE's, in T steps = log p(x)", ode, vae.log_prob(test), within=within)

print("Diffusion: a VAE of latents x_1, ..., x_T whose encoder q(x_t | x_{t-1}) is fixed")
one = Schedule(schedule.signal[[0, 25]], schedule.noise[[0, 25]])  # T = 1: one latent, z = x_1
reverse = fixed(vae.predictor(one), one, "beta")
z = q_sample(test, 1, np.random.default_rng(1).standard_normal(test.shape), one)
log_w = normal.log_prob(test, *reverse(z, 1)) + normal.log_prob(z, 0.0, 1.0)
log_w -= normal.log_prob(z, *q_marginal(test, 1, one))
by_path = path(test, one, reverse, np.random.default_rng(1))  # the same eps
lesson.equal("-(log p(x|z) + log p(z) - log q(z|x))", -log_w.sum(axis=1), by_path)
state = train.start(mlp.init(rng))
update = partial(train.update, lr=5e-3)
for _ in train.train(mlp, state, roll.sample, schedule, rng, 1500, 128, update=update):
    pass
x_0 = test.astype(np.float32)
predict_eps = predictor(mlp, state, schedule)
along = path(x_0, schedule, fixed(predict_eps, schedule, "beta"), rng)
fine = uniform_log_snr(200, -4.0, 4.5)  # in T steps the ODE would flatter itself by 0.04
by_ode = ode_log_prob(exact_divergence(mlp, state, fine), x_0, fine)
print("Nats a point of the roll, -log p(x) or a bound on it; of a GAN there is no such number")
for name, nats in (
    (f"the roll itself; its entropy is {roll.entropy():.5f}", -roll.log_prob(test)),
    ("linear VAE or flow, a draw in 1 pass: exact", -vae.log_prob(test)),
    ("  its bound, with the narrow encoder", -elbo),
    (f"diffusion, a draw in {schedule.T} passes: its bound", along),
    (f"  by its ODE, in {fine.T} steps", -by_ode),
):
    print(f"  {name:44}{nats.mean():.3f} +- {nats.std() / np.sqrt(n):.3f}")

*steps, last = ddpm(predict_eps, rng.standard_normal((n, 2), dtype=np.float32), schedule, rng)
ends, square = np.array([-5.0, 5.0]), (-2.4, 2.4, -2.4, 2.4)
marks: list = [draw.Dots(f"y = {k}", x[y == k], (draw.DATA, draw.MODEL)[k]) for k in (0, 1)]
marks += [draw.Series("p(1 | x) = 1/2", ends, -(w[0] * ends + b) / w[1], draw.INK)]
marks += [draw.Dots("", far, draw.INK, 1.0, 3.0)]
views = [draw.View("Discriminative", marks, "x[0]", "x[1]", extent=(-5.2, 5.2, -5.2, 5.2))]
for name, made in (("a linear VAE, or flow", vae.sample(n, rng)), ("a diffusion", last.x_prev)):
    marks = [draw.Dots("data", test, draw.DATA), draw.Dots("drawn", made, draw.MODEL)]
    views += [draw.View(f"Generative: {name}", marks, "x[0]", "x[1]", extent=square)]
caption = (
    "Left: p(y | x) is sure of the black point, which is of neither class; p(x) tells. Middle: a "
    f"linear VAE is one Gaussian, {vae.entropy():.2f} nats a point, and draws in one pass. Right: "
    f"a diffusion draws in {schedule.T} passes and has {along.mean():.2f} nats or less; the "
    f"roll has {roll.entropy():.2f}."
)
draw.board("out/lessons/14.png", views, caption, columns=3)
print("out/lessons/14.png")

# Change this, and see:
#   uniform_log_snr(200, ...)   for 50: the bound falls to 1.65, towards the 1.61 by the ODE
#   two equal rows of means     made x are as real x: D = 1/2, and its game is worth -2 log 2; the
#                               line p(1 | x) = 1/2 does not exist (NumPy warns, and draws none)
