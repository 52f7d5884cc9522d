"""Data whose density, score and best possible predictor are known at every noise level.

If x_0 ~ p and p is a mixture of Gaussians, then signal x_0 + noise eps is a mixture of Gaussians
too: a component N(m, C) becomes N(signal m, signal^2 C + noise^2 I). The swiss roll is such a
mixture, with a component at every point of a curve. So beside everything that a network learns
stands the function that it should have learned:

    eps*(x_t, t) = E[eps | x_t] = -noise_t grad log q(x_t)

x has shape (N, d). signal and noise are floats, or arrays of shape (N, 1) that give each row its
own. Everything is computed in float64 and returned in x's dtype.
"""

import math
from collections.abc import Callable

import numpy as np

from npdiff import normal
from npdiff.backend import Array, get_array_module
from npdiff.forward import q_sample, q_step
from npdiff.reverse import mean_per_eps, p_mean_from_eps
from npdiff.schedule import Schedule, Time

GRID = 2**21  # points, at most, over which an entropy is summed

Terms = tuple[Array, list[tuple[Array, Array, Array]]]


class Mixture:
    """p(x) = sum_k weights[k] N(x; means[k], covs[k]).

    Parameters
    ----------
    weights : (K,), positive, of sum 1
    means : (K, d)
    covs : (K, d, d), symmetric and positive definite
    """

    def __init__(self, weights: Array, means: Array, covs: Array) -> None:
        weights, means, covs = (np.asarray(a, np.float64) for a in (weights, means, covs))
        fitting = means.ndim == 2 and weights.shape == means.shape[:1]
        if not fitting or covs.shape != (*means.shape, means.shape[1]):
            raise ValueError(
                "weights, means and covs must have shapes (K,), (K, d), (K, d, d), "
                f"got {weights.shape}, {means.shape}, {covs.shape}"
            )
        if not all(np.isfinite(a).all() for a in (weights, means, covs)):
            raise ValueError("weights, means and covs must be finite")
        if not (weights > 0).all() or not math.isclose(weights.sum(), 1, rel_tol=1e-9):
            raise ValueError(f"weights must be positive and sum to 1, got sum {weights.sum()}")
        variances, axes = np.linalg.eigh(covs)
        if not (variances > 0).all() or not np.allclose(covs, covs.swapaxes(1, 2)):
            raise ValueError("each of covs must be symmetric and positive definite")
        self.weights, self.means, self.dim = weights, means, means.shape[1]
        # Component k has the variance variances[j, k] along axes[j, k]. Noise adds to the variance
        # and leaves the axis as it is.
        self.variances = variances.T.copy()  # (d, K)
        self.axes = axes.transpose(2, 0, 1).copy()  # (d, K, d)

    def sample(self, n: int, rng: np.random.Generator, dtype: type = np.float32) -> np.ndarray:
        """n draws, of shape (n, d), on the host."""
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        z = rng.standard_normal((n, self.dim)) * np.sqrt(self.variances[:, k].T)
        return (self.means[k] + np.einsum("nj,jnd->nd", z, self.axes[:, k])).astype(dtype)

    def log_prob(self, x: Array, signal: Array = 1.0, noise: Array = 0.0) -> Array:
        """Log-density of signal x_0 + noise eps at x, in nats: (N, d) -> (N,)."""
        log_terms, _ = self._terms(x, signal, noise)
        return normal.log_sum_exp(log_terms)[:, 0].astype(x.dtype)

    def score(self, x: Array, signal: Array = 1.0, noise: Array = 0.0) -> Array:
        """The score of signal x_0 + noise eps at x, grad log p(x): (N, d) -> (N, d).

        It is the mean of the components' scores, weighted by their posterior probabilities given x.
        """
        score, _ = self._score_and_laplacian(x, signal, noise)
        return score.astype(x.dtype)

    def entropy(self) -> float:
        """H = -int p log p dx in nats, by the trapezoid rule.

        The points of the grid lie half the narrowest standard deviation apart. Each row of the grid
        is computed from the components within nine of the widest. ValueError for d > 2, and where
        the grid would have more than GRID points.
        """
        instead = "estimate it by -log_prob(sample).mean()"
        if self.dim > 2:
            raise ValueError(
                f"entropy is integrated on a grid, for d = 1 or 2, got d = {self.dim}; {instead}"
            )
        narrowest, widest = np.sqrt(self.variances.min()), np.sqrt(self.variances.max())
        low, high = self.means.min(axis=0) - 9 * widest, self.means.max(axis=0) + 9 * widest
        counts = np.ceil(2 * (high - low) / narrowest).astype(int) + 1
        if counts.prod() > GRID:
            raise ValueError(
                f"entropy needs a grid of {counts.prod():.1e} points for a component as narrow as "
                f"{narrowest:.1e}; {instead}"
            )
        sides = [np.linspace(a, b, n) for a, b, n in zip(low, high, counts, strict=True)]
        total = 0.0
        for first in sides[0]:
            near = np.abs(self.means[:, 0] - first) < 9 * widest
            if near.any():
                row = np.stack([*np.meshgrid(first, *sides[1:])], axis=-1).reshape(-1, self.dim)
                share = self.weights[near].sum()
                log_p = math.log(share) + self.part(near).log_prob(row)
                total -= (np.exp(log_p) * log_p).sum()
        return float(total * math.prod(side[1] - side[0] for side in sides))

    def part(self, chosen: np.ndarray) -> "Mixture":
        """The mixture of these components, with their weights scaled to sum to 1."""
        variances, axes = self.variances[:, chosen], self.axes[:, chosen]
        covs = np.einsum("jk,jka,jkb->kab", variances, axes, axes)
        return Mixture(self.weights[chosen] / self.weights[chosen].sum(), self.means[chosen], covs)

    def predictor(self, schedule: Schedule) -> Callable[[Array, Time], Array]:
        """The best predictor of the noise in mean square, as a function predict_eps(x_t, t).

        eps*(x_t, t) = E[eps | x_t] = -noise_t grad log q(x_t)
        """

        def predict_eps(x_t: Array, t: Time) -> Array:
            s = schedule.at(t, x_t)
            return -s.noise * self.score(x_t, s.signal, s.noise)

        return predict_eps

    def denoiser(self, schedule: Schedule) -> Callable[[Array, Time], Array]:
        """The best predictor of the data, predict_x_0(x_t, t) = E[x_0 | x_t], at every t.

        E[x_0 | x_t] = sum_k r_k (means_k - signal covs_k g_k)

        g_k is the score of component k at x_t, and r_k its posterior probability. No signal is
        divided by: where x_t is pure noise this is the mean of the data.
        """

        def predict_x_0(x_t: Array, t: Time) -> Array:
            s = schedule.at(t, x_t)
            return self._mean_x_0(x_t, s.signal, s.noise).astype(x_t.dtype)

        return predict_x_0

    def velocity(self, schedule: Schedule) -> Callable[[Array, Time], Array]:
        """The mean velocity of the straight lines from data to noise, as velocity(x_t, t).

        velocity = E[eps - x_0 | x_t],    at every t: see papers/flow_matching.py
        """
        predict_eps, predict_x_0 = self.predictor(schedule), self.denoiser(schedule)
        return lambda x_t, t: predict_eps(x_t, t) - predict_x_0(x_t, t)

    def flow_map(
        self, x: Array, signal: float, noise: float, signal_end: float = 1.0, noise_end: float = 0.0
    ) -> Array:
        """Where the probability-flow ODE leads x, (N, 1) on the host, from one level to another.

        F_end(y) = F(x),    F the distribution function at a level

        On a line paths cannot cross, so the ODE keeps the order of points and with it the share of
        the data to the left of each. y is found by bisection, from the nearer tail. ValueError for
        d > 1, where no such order is kept: see `papers.flow_matching.exact_map`.
        """
        if self.dim > 1:
            raise ValueError(
                f"the flow map is a matter of quantiles for d = 1 alone, got d = {self.dim}; "
                "papers.flow_matching.exact_map solves the ODE"
            )
        left, right = self._log_tails(x, signal, noise)
        at_left = left < right
        reach = 40 * math.sqrt(signal_end**2 * float(self.variances.max()) + noise_end**2)
        low = np.full(x.shape, signal_end * self.means.min() - reach)
        high = np.full(x.shape, signal_end * self.means.max() + reach)
        for _ in range(100):
            y = (low + high) / 2
            left_y, right_y = self._log_tails(y, signal_end, noise_end)
            too_low = np.where(at_left, left_y < left, right_y > right)
            low, high = np.where(too_low, y, low), np.where(too_low, high, y)
        return y.astype(x.dtype)

    def irreducible_loss(self, x_t: Array, t: Time, schedule: Schedule) -> Array:
        """The error that no predictor can avoid, E[|eps - eps*|^2 | x_t] / d: (N, d) -> (N,).

        Its mean over x_t ~ q(x_t) is the loss of a perfect network. It is the trace of

        Cov[eps | x_t] = I + noise_t^2 grad grad^T log q(x_t)

        divided by d (Tweedie's formula of second order).
        """
        x = x_t.astype("float64")
        s = schedule.at(t, x)
        _, laplacian = self._score_and_laplacian(x, s.signal, s.noise)
        return (1 + s.noise**2 * laplacian / self.dim)[:, 0].astype(x_t.dtype)

    def reverse_step(self, x_t: Array, t: int, schedule: Schedule) -> tuple[Array, Array]:
        """Mean (N, d) and covariance (N, d, d) of the true reverse step q(x_{t-1} | x_t).

        mean = (x_t - beta_t / noise_t eps*) / sqrt(alpha_t)
        cov  = beta_tilde_t I + mean_per_eps_t^2 Cov[eps | x_t]

        The mean is eq. (11), Ho et al. 2020, with eps* for eps_hat. The covariance follows from the
        posterior given x_0, whose mean moves by mean_per_eps with eps; Cov[eps | x_t] is that of
        `irreducible_loss`. Both are in float64.
        """
        x = x_t.astype("float64")
        s = schedule.at(t, x)
        identity = get_array_module(x).eye(self.dim, dtype=x.dtype)
        mean = p_mean_from_eps(x, t, -s.noise * self.score(x, s.signal, s.noise), schedule)
        cov_eps = identity + s.noise**2 * self._hessian(x, s.signal, s.noise)
        return mean, s.beta_tilde * identity + float(mean_per_eps(t, schedule)) ** 2 * cov_eps

    def _terms(self, x: Array, signal: Array, noise: Array) -> Terms:
        """log(w_k N_k(x)) of each component k, (N, K); and for each axis j a triple.

        The triple holds the components' scores along the axis, (N, K), their variances along it,
        (K,), or (N, K) where each row has its own level, and the axis itself, (K, d).
        """
        if x.ndim != 2 or x.shape[1] != self.dim or x.dtype.kind != "f":
            raise ValueError(f"x must be floats of shape (N, {self.dim}), got {x.dtype} {x.shape}")
        xp = get_array_module(x)
        x, signal, noise = (
            a if isinstance(a, (int, float)) else a.astype("float64") for a in (x, signal, noise)
        )
        log_terms = xp.asarray(np.log(self.weights))
        along_axes = []
        for j in range(self.dim):
            axis = xp.asarray(self.axes[j])  # (K, d)
            centre = xp.asarray((self.axes[j] * self.means).sum(axis=1))  # (K,)
            var = signal**2 * xp.asarray(self.variances[j]) + noise**2  # (K,) or (N, K)
            offset = x @ axis.T - signal * centre  # (N, K)
            log_terms = log_terms + normal.log_prob(offset, 0.0, var)
            along_axes.append((-offset / var, var, axis))
        return log_terms, along_axes

    def _score_and_laplacian(self, x: Array, signal: Array, noise: Array) -> tuple[Array, Array]:
        """grad log p, (N, d), and div grad log p, (N, 1).

        grad log p     = sum_k r_k g_k
        div grad log p = sum_k r_k (|g_k|^2 + div g_k) - |grad log p|^2

        g_k is the score of component k, and r_k its posterior probability given x.
        """
        log_terms, along_axes = self._terms(x, signal, noise)
        r = get_array_module(x).exp(log_terms - normal.log_sum_exp(log_terms))  # (N, K)
        score = sum((r * g) @ axis for g, _, axis in along_axes)  # (N, d)
        spread = sum((r * (g**2 - 1 / var)).sum(axis=1, keepdims=True) for g, var, _ in along_axes)
        return score, spread - (score**2).sum(axis=1, keepdims=True)

    def _log_tails(self, x: Array, signal: float, noise: float) -> tuple[Array, Array]:
        """log P(x_t < x) and log P(x_t > x) for d = 1, (N, 1) each."""
        std = np.sqrt(signal**2 * self.variances[0] + noise**2)  # (K,)
        z = (x - signal * self.means[:, 0]) / std  # (N, K)
        log_w = np.log(self.weights)
        left, right = log_w + normal.log_cdf(z), log_w + normal.log_cdf(-z)
        return normal.log_sum_exp(left), normal.log_sum_exp(right)

    def _mean_x_0(self, x: Array, signal: Array, noise: Array) -> Array:
        """E[x_0 | signal x_0 + noise eps = x], (N, d): see `denoiser`."""
        xp = get_array_module(x)
        log_terms, along_axes = self._terms(x, signal, noise)
        r = xp.exp(log_terms - normal.log_sum_exp(log_terms))  # (N, K)
        mean = r @ xp.asarray(self.means)
        for j, (g, _, axis) in enumerate(along_axes):
            mean = mean - signal * (r * g * xp.asarray(self.variances[j])) @ axis
        return mean

    def _hessian(self, x: Array, signal: float, noise: float) -> Array:
        """The matrix of second derivatives of log p: (N, d) -> (N, d, d).

        grad grad^T log p = sum_k r_k (g_k g_k^T - C_k^{-1}) - grad log p (grad log p)^T
        """
        xp = get_array_module(x)
        log_terms, along_axes = self._terms(x, signal, noise)
        r = xp.exp(log_terms - normal.log_sum_exp(log_terms))  # (N, K)
        g = sum(g[:, :, None] * axis for g, _, axis in along_axes)  # (N, K, d)
        hessian = xp.einsum("nk,nki,nkj->nij", r, g, g, optimize=True)
        for _, var, axis in along_axes:
            hessian -= xp.einsum("nk,ki,kj->nij", r, axis / var[:, None], axis, optimize=True)
        score = (r[:, :, None] * g).sum(axis=1)  # (N, d)
        return hessian - score[:, :, None] * score[:, None, :]


class Gaussian(Mixture):
    """N(mean, cov): mean of shape (d,), cov of shape (d, d)."""

    def __init__(self, mean: Array, cov: Array) -> None:
        super().__init__(np.ones(1), np.atleast_1d(mean)[None], np.atleast_2d(cov)[None])

    def flow_map(
        self, x: Array, signal: float, noise: float, signal_end: float = 1.0, noise_end: float = 0.0
    ) -> Array:
        """Where the probability-flow ODE leads x, (N, d) on the host, from one level to another.

        y = signal_end m + std_end / std (x - signal m),    std = sqrt(signal^2 variance + noise^2)

        along each axis of the covariance.
        """
        axes, variances = self.axes[:, 0], self.variances[:, 0]  # (d, d), (d,)
        std = np.sqrt(signal**2 * variances + noise**2)
        std_end = np.sqrt(signal_end**2 * variances + noise_end**2)
        offset = (x - signal * self.means[0]) @ axes.T  # (N, d), along the axes
        y = signal_end * self.means[0] + (offset * std_end / std) @ axes
        return y.astype(x.dtype)

    def entropy(self) -> float:
        """H = 1/2 log det(2 pi e cov), in nats."""
        return float(normal.entropy(self.variances).sum())


def gauss_legendre(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of int f(u) du from the first to the last edge: (P+1,) -> (16 P,), (16 P,).

    Each of the P panels between two edges has 16 nodes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    low, high = edges[:-1, None], edges[1:, None]
    half = (high - low) / 2  # (P, 1)
    return ((high + low) / 2 + half * nodes).ravel(), (half * weights).ravel()


class SwissRoll(Mixture):
    """A spiral with Gaussian noise around it, standardised.

    x = (c(u) + noise z - centre) / scale,    z ~ N(0, I)
    c(u) = (u cos u, u sin u),                u uniform on (1.5 pi, 4.5 pi)

    This is scikit-learn's make_swiss_roll seen from the side. `centre` is the mean of c(u). `scale`
    is one number (6.8075 at noise 0.5), chosen so that the mean of the two variances is 1; so the
    noise stays the same in every direction. Since p(x) is an average over u of Gaussians at c(u), a
    quadrature over u makes it a Mixture whose components lie along the curve.
    """

    U_MIN, U_MAX = 1.5 * math.pi, 4.5 * math.pi

    def __init__(self, noise: float = 0.5) -> None:
        if not 0.01 <= noise < math.inf:
            raise ValueError(
                "noise must be at least 0.01 (a bare curve has no density in the plane, and one "
                f"nearly bare needs too many components), got {noise}"
            )
        self.centre = np.array([2.0, 2 / (3 * math.pi)])  # E[c(u)]
        mean_square = (self.U_MAX**3 - self.U_MIN**3) / (9 * math.pi)  # E[u^2] = E|c(u)|^2
        self.scale = math.sqrt((mean_square - (self.centre**2).sum()) / 2 + noise**2)
        self.noise = noise / self.scale
        self._by_panels: dict[int, Mixture] = {}
        finest = self._quadrature(self.noise)
        super().__init__(finest.weights, finest.means, finest.variances.T[:, :, None] * np.eye(2))

    def curve(self, u: np.ndarray) -> np.ndarray:
        """The centre line of the roll at the angle u: (n,) -> (n, 2)."""
        return (np.stack([u * np.cos(u), u * np.sin(u)], axis=1) - self.centre) / self.scale

    def sample(self, n: int, rng: np.random.Generator, dtype: type = np.float32) -> np.ndarray:
        """n draws, of shape (n, 2), on the host."""
        u = rng.uniform(self.U_MIN, self.U_MAX, n)
        return (self.curve(u) + self.noise * rng.standard_normal((n, 2))).astype(dtype)

    def _quadrature(self, width: float) -> Mixture:
        """The roll as a Mixture with enough components for Gaussians of this width.

        It is a Gauss-Legendre rule with 16 nodes to a panel, and panels at most four widths long.
        The arc length grows as u^2 / 2, up to a part in u^2, so the panels are equal in u^2. Their
        number is a power of 2, and each Mixture is kept for later calls.
        """
        arc_length = (self.U_MAX**2 - self.U_MIN**2) / 2 / self.scale
        panels = 2 ** max(3, math.ceil(math.log2(arc_length / (4 * width))))
        if panels not in self._by_panels:
            u, weights = gauss_legendre(
                np.sqrt(np.linspace(self.U_MIN**2, self.U_MAX**2, panels + 1))
            )
            covs = np.broadcast_to(self.noise**2 * np.eye(2), (len(u), 2, 2))
            self._by_panels[panels] = Mixture(
                weights / (self.U_MAX - self.U_MIN), self.curve(u), covs
            )
        return self._by_panels[panels]

    def _for_level(self, signal: Array, noise: Array) -> Mixture:
        """The roll with as many components as the lowest noise level of the batch needs."""
        signal_max = signal if isinstance(signal, (int, float)) else float(signal.max())
        noise_min = noise if isinstance(noise, (int, float)) else float(noise.min())
        width = math.hypot(self.noise, noise_min / signal_max) if signal_max > 0 else math.inf
        return self._quadrature(min(width, 1.0))

    def _terms(self, x: Array, signal: Array, noise: Array) -> Terms:
        return self._for_level(signal, noise)._terms(x, signal, noise)

    def _mean_x_0(self, x: Array, signal: Array, noise: Array) -> Array:
        return self._for_level(signal, noise)._mean_x_0(x, signal, noise)


# The true reverse step beside its best Gaussian: when a Gaussian step is enough, and when not.


def non_gaussianity(
    data: Mixture, t: int, schedule: Schedule, n: int, rng: np.random.Generator
) -> float:
    """E KL(q(x_{t-1} | x_t) || its best Gaussian) in nats, estimated from n points.

    q(x_{t-1} | x_t) = q(x_t | x_{t-1}) q(x_{t-1}) / q(x_t)

    The best Gaussian has the mean and the covariance of this density. With many steps T the reverse
    step is nearly Gaussian; with few it takes the shape of the data.
    """
    s, d = schedule, data.dim
    x_0 = data.sample(n, rng, np.float64)
    x_prev = q_sample(x_0, t - 1, rng.standard_normal(x_0.shape), s) if t > 1 else x_0
    eps = rng.standard_normal(x_0.shape)
    x_t = q_step(x_prev, t, eps, s)

    # q(x_t | x_{t-1}), from eps = (x_t - sqrt(alpha_t) x_{t-1}) / sqrt(beta_t)
    log_q_step = normal.log_prob(eps, 0.0, 1.0).sum(axis=1) - d / 2 * math.log(s.beta[t])
    log_q_prev = data.log_prob(x_prev, float(s.signal[t - 1]), float(s.noise[t - 1]))
    log_q_t = data.log_prob(x_t, float(s.signal[t]), float(s.noise[t]))

    mean, cov = data.reverse_step(x_t, t, s)
    offset = x_prev - mean
    squares = (offset * np.linalg.solve(cov, offset[..., None])[..., 0]).sum(axis=1)
    log_gaussian = -0.5 * (d * normal.LOG_2PI + np.linalg.slogdet(cov)[1] + squares)
    return normal.mean_kl(log_q_step + log_q_prev - log_q_t - log_gaussian)


def reverse_draws(
    data: Mixture, x_t: np.ndarray, t: int, schedule: Schedule, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """n draws of q(x_{t-1} | x_t) for one x_t of shape (d,), and n draws of its best Gaussian.

    Both have shape (n, d). For the first, draws of q(x_{t-1}) are resampled with probabilities
    proportional to q(x_t | x_{t-1}).
    """
    x_0 = data.sample(200 * n, rng, np.float64)
    x_prev = q_sample(x_0, t - 1, rng.standard_normal(x_0.shape), schedule) if t > 1 else x_0
    mean_t, beta_t = math.sqrt(schedule.alpha[t]) * x_prev, float(schedule.beta[t])
    log_w = normal.log_prob(x_t, mean_t, beta_t).sum(axis=1)
    w = np.exp(log_w - log_w.max())
    mean, cov = data.reverse_step(x_t[None], t, schedule)
    drawn = x_prev[rng.choice(len(w), size=n, p=w / w.sum())]
    return drawn, rng.multivariate_normal(mean[0], cov[0], size=n)
