"""How does the likelihood become a squared error on the noise?

log p(x_0) is the log of a mean over paths, by Jensen's inequality at least the mean of the log: the
ELBO, which can be sampled. Bayes' rule turns minus the ELBO into a sum of KLs of Gaussians. At
equal variances a KL is a squared distance of means, and the means differ by w_t (eps_hat - eps). So
each term is w_t^2/(2 beta_tilde_t) |eps - eps_hat|^2, and L_simple drops the weight.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # demos/, where lab lies

from lab import draw, lesson

lesson.begin(__doc__)

import numpy as np

from npdiff import exact, likelihood, normal
from npdiff.forward import prior_kl, q_marginal, q_posterior, q_sample, q_step
from npdiff.loss import l_simple
from npdiff.reverse import mean_per_eps, p_mean_from_eps
from npdiff.schedule import linear, uniform_log_snr

rng = np.random.default_rng(0)
n = 20_000
m, s2 = 1.0, 0.25
data = exact.Gaussian([m], [[s2]])  # x_0 ~ N(m, s2): all that follows has a known value
schedule = uniform_log_snr(T=25, level_1=-4.0, level_T=3.0)
T, beta = schedule.T, schedule.beta
predict_eps = data.predictor(schedule)  # the best eps_hat, in the place of a network
reverse = likelihood.fixed(predict_eps, schedule, "beta")  # p(x_{t-1} | x_t) = N(mu_theta, beta_t)

print("1. p(x_0) = E[w], where w = p(x_0, ..., x_T)/q(x_1, ..., x_T | x_0) on a path of q")
mean_p, var_p = 0.0, 1.0  # of x_T ~ N(0, 1). Here mu_theta is a x_t + b: carried as in lesson 01
for t in range(T, 0, -1):
    mu_theta, _ = reverse(np.array([[0.0], [1.0]]), t)  # at x_t = 0 and at x_t = 1
    b, at_1 = mu_theta.ravel()
    a = at_1 - b
    mean_p = a * mean_p + b
    var_p = a**2 * var_p + beta[t]
log_p = normal.log_prob(0.7, mean_p, var_p)  # the model's log-likelihood of x_0 = 0.7, exactly
log_w = -likelihood.path(np.full((n, 1), 0.7), schedule, reverse, rng)
w = np.exp(log_w)
lesson.equal("E[w] = p(x_0)", w.mean(), np.exp(log_p), w.std() / n**0.5)
# Jensen: log is concave, so E[log w] is at most log E[w]. E[log w] is the evidence lower bound, or
# ELBO. Minus the ELBO, which is an upper bound on -log p(x_0), is called the bound below.
print(f"  Jensen: the ELBO E[log w] = {log_w.mean():.4f}, and log E[w] = {log_p:.4f}")

print("2. Bayes' rule at every step of n paths: log w is a sum of log ratios, whose means are KLs")
x = np.zeros((T + 1, n, 1))
x[0] = data.sample(n, rng, np.float64)
noise = np.random.default_rng(1)
log_p_back, log_q_back, log_q_step, log_q_x_0 = np.zeros((4, T + 1, n, 1))
for t in range(1, T + 1):
    x[t] = q_step(x[t - 1], t, noise.standard_normal((n, 1)), schedule)
    mean_step = (1 - beta[t]) ** 0.5 * x[t - 1]
    log_q_step[t] = normal.log_prob(x[t], mean_step, beta[t])  # q(x_t | x_{t-1})
    log_q_x_0[t] = normal.log_prob(x[t], *q_marginal(x[0], t, schedule))  # q(x_t | x_0)
    log_p_back[t] = normal.log_prob(x[t - 1], *reverse(x[t], t))  # p(x_{t-1} | x_t)
    if t > 1:  # q(x_{t-1} | x_t, x_0)
        log_q_back[t] = normal.log_prob(x[t - 1], *q_posterior(x[0], x[t], t, schedule))
bayes = log_q_back[2:] + log_q_x_0[2:] - log_q_x_0[1:-1]  # the marginals cancel in the sum over t
lesson.equal("log q(x_t | x_{t-1}), by Bayes' rule", log_q_step[2:], bayes)
ratios = log_q_back - log_p_back  # of L_{t-1}; at t = 1 it is L_0 = -log p(x_0 | x_1)
ratios[0] = log_q_x_0[T] - normal.log_prob(x[T], 0.0, 1.0)  # of L_T
path = likelihood.path(x[0], schedule, reverse, np.random.default_rng(1))  # with the same noise
lesson.equal("-log w, eq. (3) = sum of the ratios, eq. (5)", path, ratios.sum(axis=(0, 2)))
ratios = ratios[[0, *range(T, 0, -1)], :, 0]  # in the order of likelihood.bound: L_T, then T to 1
kls = np.array([values for _, values in likelihood.bound(x[0], schedule, reverse, rng)])
error = (ratios - kls).std(axis=1) / n**0.5
lesson.equal("E[ratio] = E[KL], likelihood.bound", ratios.mean(axis=1), kls.mean(axis=1), error)

print("3. Such a KL is a squared error of eps, for any eps_hat")
t = rng.integers(2, T + 1, size=n)  # one for each row
eps = rng.standard_normal((n, 1))
x_t = q_sample(x[0], t, eps, schedule)
s = schedule.at(t, x_t)
eps_hat = predict_eps(x_t, t)
w_t = mean_per_eps(t, schedule)[:, None]
mu_theta = p_mean_from_eps(x_t, t, eps_hat, schedule)
mu_tilde, _ = q_posterior(x[0], x_t, t, schedule)
off = mu_theta - mu_tilde
lesson.equal("mu_theta - mu_tilde = w_t (eps_hat - eps)", off, w_t * (eps_hat - eps))
lesson.equal("w_t^2 = beta^2/(alpha (1 - alpha_bar))", w_t**2, s.beta**2 / (s.alpha * s.noise**2))
loss = l_simple(eps_hat, x[0], t, eps, schedule)[0][:, None]  # |eps - eps_hat|^2
for name, var in (("beta_tilde", s.beta_tilde), ("beta", s.beta)):  # the variance of p
    r = s.beta_tilde / var  # 1 at equal variances: then only the means count
    by_hand = 0.5 * (r - 1 - np.log(r)) + w_t**2 / (2 * var) * loss
    p_step = likelihood.fixed(predict_eps, schedule, name)
    kl = likelihood.step_kl(x[0], x_t, t, schedule, p_step)
    lesson.equal(f"{name}: KL = c(r) + w_t^2/(2 var) l_simple", kl[:, None], by_hand)
x_1 = q_sample(x[0], 1, eps, schedule)
w_1 = mean_per_eps(1, schedule)
loss, _ = l_simple(predict_eps(x_1, 1), x[0], 1, eps, schedule)
by_hand = 0.5 * np.log(2 * np.pi * beta[1]) + w_1**2 / (2 * beta[1]) * loss
L_0 = -likelihood.gaussian_decoder(x[0], *reverse(x_1, 1))[:, 0]
lesson.equal("L_0 = constant + w_1^2/(2 beta_1) l_simple", L_0, by_hand)

print("4. Over the data, in nats: the bound, and the entropy H, below which no model can come")
H = data.entropy()
two = np.array([[m - s2**0.5], [m + s2**0.5]])  # two points of the data's mean and variance
Ts = np.array([800, 400, 200, 100, 50, 25])
bounds = np.zeros((3, 6))
gaps = np.zeros((3, 6))
for j, T in enumerate(Ts.tolist()):
    schedule = uniform_log_snr(T, level_1=-4.0, level_T=3.0)
    alpha_bar = schedule.alpha_bar
    beta = schedule.beta
    v = alpha_bar * s2 + 1 - alpha_bar  # the variance of x_t
    loss = 1 - (1 - alpha_bar) / v  # E|eps - eps_hat|^2: what x_t leaves unknown of eps
    true_var = np.zeros(T + 1)  # of q(x_{t-1} | x_t). Precisions add up, as in lesson 02:
    true_var[1:] = 1 / ((1 - beta[1:]) / beta[1:] + 1 / v[:-1])
    L_T = prior_kl(two, schedule).mean()  # quadratic in x_0, so two points give its mean
    start = normal.kl(schedule.signal[T] * m, v[T], 0.0, 1.0)  # q(x_T) from N(0, 1)
    tilde = likelihood.variance_table("beta_tilde", schedule)
    for i, var in enumerate((true_var, beta, tilde)):
        bounds[i, j] = L_T + likelihood.terms_from_loss(loss, schedule, var).sum()
        gaps[i, j] = start + normal.kl(0.0, true_var[1:], 0.0, var[1:]).sum()  # at equal means
lesson.equal("E|eps - eps_hat|^2 = 1 - noise^2/v", loss[t], data.irreducible_loss(x_t, t, schedule))
lesson.equal("true variance = best_variance", true_var, likelihood.best_variance(loss, schedule))
lesson.equal("true variance: bound = H + KL(q(x_T) || N(0, 1))", bounds[0], H + start)
lesson.equal("beta, beta_tilde: + KL(q || p) of every step", bounds[1:], H + gaps[1:])
total = kls.sum(axis=0)  # the bound at each x_0 of part 2, sampled
lesson.equal("beta: the mean of n bounds", total.mean(), bounds[1, -1], total.std() / n**0.5)
cross = H + normal.kl(m, s2, mean_p, var_p)  # E[-log p(x_0)] of the model of part 1
# A KL is not negative, so cross is at least H. By Jensen at each x_0 the bound is at least cross.
print(f"  beta, 25 steps: H = {H:.4f}, E[-log p(x_0)] = {cross:.4f}, bound = {total.mean():.4f}")
print("  bound - H with the true variance, beta, beta_tilde:", gaps[:, -1].round(4))

t = np.arange(2, 1001)
table = linear(T=1000)
weight = mean_per_eps(t, table) ** 2 / (2 * table.beta_tilde[t])
print("  what L_simple drops: weights at t = 2, 10, 100, 1000:", weight[[0, 8, 98, 998]].round(4))
weights = [draw.Series("in the bound, with beta_tilde", t, weight)]
weights += [draw.Series("in L_{simple}", t, np.ones(999), draw.EXACT)]
lines = [draw.Series("beta_tilde", Ts, gaps[2]), draw.Series("beta", Ts, gaps[1], draw.DATA)]
lines += [draw.Series("true variance", Ts, gaps[0], draw.EXACT)]
left = draw.View("Weight of |eps - eps_hat|^{2}", weights, "step t of 1000", "weight", True, True)
right = draw.View("Bound minus entropy", lines, "number of steps T", "nats", True, True)
draw.board(
    "out/lessons/04.png",
    [left, right],
    "Left: in the bound an error of eps at t = 2 costs 118 times as much as one at t = 300; in "
    f"L_{{simple}} it costs the same. Right: data N({m:g}, {s2:g}), perfect eps_hat. "
    "A wrong variance costs less in short steps. With the true one only the start "
    "from N(0, 1) costs.",
    height=300,
)
print("out/lessons/04.png")

# Change this, and see:
#   m, s2 = 1.0, 1.0   here beta is the true variance: bound - H is 0.0012 with either
#   predict_eps = exact.Gaussian([0.0], [[s2]]).predictor(schedule)
#                      a wrong eps_hat: parts 1 to 3 hold, but the sampled bound is 2.5, not 0.77
