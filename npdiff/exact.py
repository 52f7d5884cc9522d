"""Data whose density, score and best possible predictor are known at every noise level.

If x_0 ~ p then signal x_0 + noise eps has a density that is known too, where p is a mixture of Gaussians: a component
N(m, C) becomes N(signal m, signal^2 C + noise^2 I). The swiss roll is such a mixture, with a component at every point
of a curve. So beside everything that a network learns stands the function that it should have learned:

    eps*(x_t, t) = E[eps | x_t] = -noise_t grad log q(x_t)

x has shape (N, d); signal and noise are floats, or arrays of shape (N, 1) that give each row its own. All is computed
in float64 and returned in x's dtype.
"""

import math
from collections.abc import Callable

import numpy as np

from npdiff import normal
from npdiff.backend import Array, get_array_module
from npdiff.forward import Time
from npdiff.schedule import Schedule, check_t, coefficient


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
        if means.ndim != 2 or weights.shape != means.shape[:1] or covs.shape != (*means.shape, means.shape[1]):
            raise ValueError(f"needed: weights (K,), means (K, d), covs (K, d, d); got {weights.shape}, {means.shape}, {covs.shape}")
        if not (weights > 0).all() or not math.isclose(weights.sum(), 1, rel_tol=1e-9):
            raise ValueError(f"weights must be positive and sum to 1, got sum {weights.sum()}")
        variances, axes = np.linalg.eigh(covs)
        if not (variances > 0).all() or not np.allclose(covs, covs.swapaxes(1, 2)):
            raise ValueError("each of covs must be symmetric and positive definite")
        self.weights, self.means = weights, means
        self.variances = variances.T.copy()  # (d, K)     the variance along axis j of component k; noise adds to it,
        self.axes = axes.transpose(2, 0, 1).copy()  # (d, K, d)  and leaves the axis as it is
        self.dim = means.shape[1]

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
        """Gradient with respect to x of `log_prob`: the components' own scores, averaged as x belongs to them. (N, d) -> (N, d)."""
        score, _ = self._score_and_laplacian(x, signal, noise)
        return score.astype(x.dtype)

    def entropy(self) -> float:
        """H = -int p log p dx in nats, by the trapezoid rule on a grid of half the narrowest width; ValueError for d > 2."""
        if self.dim > 2:
            raise ValueError(f"entropy is integrated on a grid, for d = 1 or 2, got d = {self.dim}; estimate it: -log_prob(sample).mean()")
        narrowest, widest = np.sqrt(self.variances.min()), np.sqrt(self.variances.max())
        low, high = self.means.min(axis=0) - 9 * widest, self.means.max(axis=0) + 9 * widest
        sides = [np.linspace(a, b, math.ceil(2 * (b - a) / narrowest) + 1) for a, b in zip(low, high, strict=True)]
        rows = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(len(sides[0]), -1, self.dim)
        log_p = np.stack([self.log_prob(row) for row in rows])
        return float(-(np.exp(log_p) * log_p).sum() * math.prod(side[1] - side[0] for side in sides))

    def predictor(self, schedule: Schedule) -> Callable[[Array, Time], Array]:
        """The best predictor of eps in mean square, eps*(x_t, t) = E[eps | x_t] = -noise_t score(x_t), as predict_eps(x_t, t)."""

        def predict_eps(x_t: Array, t: Time) -> Array:
            check_t(t, schedule)
            signal_t, noise_t = coefficient(schedule.signal[t], x_t), coefficient(schedule.noise[t], x_t)
            return -noise_t * self.score(x_t, signal_t, noise_t)

        return predict_eps

    def irreducible_loss(self, x_t: Array, t: Time, schedule: Schedule) -> Array:
        """E[|eps - eps*|^2 | x_t] / d: (N, d) -> (N,). Its mean over x_t ~ q(x_t) is the loss of a perfect network at t.

        That is the trace of Cov[eps | x_t] = I + noise_t^2 grad grad^T log q(x_t), which is Tweedie's formula, of second order.
        """
        check_t(t, schedule)
        x = x_t.astype("float64")
        signal_t, noise_t = coefficient(schedule.signal[t], x), coefficient(schedule.noise[t], x)
        _, laplacian = self._score_and_laplacian(x, signal_t, noise_t)
        return (1 + noise_t**2 * laplacian / self.dim)[:, 0].astype(x_t.dtype)

    def _terms(self, x: Array, signal: Array, noise: Array) -> tuple[Array, list[tuple[Array, Array, Array]]]:
        """log(w_k N_k(x)), of shape (N, K), and along each axis j: the pull towards the centres, the variance, the axis."""
        xp = get_array_module(x)
        x, signal, noise = (a if isinstance(a, (int, float)) else a.astype("float64") for a in (x, signal, noise))
        log_terms = xp.asarray(np.log(self.weights))
        along_axes = []
        for j in range(self.dim):
            axis = xp.asarray(self.axes[j])  # (K, d)
            centre = xp.asarray((self.axes[j] * self.means).sum(axis=1))  # (K,)
            var = signal**2 * xp.asarray(self.variances[j]) + noise**2  # (K,), or (N, K) where each row has its own level
            offset = x @ axis.T - signal * centre  # (N, K)
            log_terms = log_terms + normal.log_prob(offset, 0.0, var)
            along_axes.append((-offset / var, var, axis))
        return log_terms, along_axes

    def _score_and_laplacian(self, x: Array, signal: Array, noise: Array) -> tuple[Array, Array]:
        """grad log p and div grad log p, by grad p / p = sum_k r_k g_k with r_k the posterior of component k and g_k its score."""
        log_terms, along_axes = self._terms(x, signal, noise)
        r = get_array_module(x).exp(log_terms - normal.log_sum_exp(log_terms))  # (N, K)
        score = sum((r * pull) @ axis for pull, _, axis in along_axes)  # (N, d)
        spread = sum((r * (pull**2 - 1 / var)).sum(axis=1, keepdims=True) for pull, var, _ in along_axes)
        return score, spread - (score**2).sum(axis=1, keepdims=True)


class Gaussian(Mixture):
    """N(mean, cov): mean of shape (d,), cov of shape (d, d)."""

    def __init__(self, mean: Array, cov: Array) -> None:
        super().__init__(np.ones(1), np.atleast_1d(mean)[None], np.atleast_2d(cov)[None])

    def entropy(self) -> float:
        """H = 1/2 log det(2 pi e cov), in nats."""
        return float(normal.entropy(self.variances).sum())


def gauss_legendre(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of int f(u) du from the first to the last edge, 16 to each panel between two: (P+1,) -> (16 P,), (16 P,)."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    low, high = edges[:-1, None], edges[1:, None]
    half = (high - low) / 2  # (P, 1)
    return ((high + low) / 2 + half * nodes).ravel(), (half * weights).ravel()


class SwissRoll(Mixture):
    """The curve c(u) = (u cos u, u sin u), u uniform on (1.5 pi, 4.5 pi), thickened by N(0, noise^2 I), then standardised.

    This is the roll of scikit-learn's make_swiss_roll seen from the side, minus its mean and divided by one scalar
    (6.8075 at noise 0.5), so that the mean of its two variances is 1 and the noise stays the same in every direction.
    Since p(x) = E_u N(x; c(u), noise^2 I), a quadrature over u makes it a Mixture with its components along the curve.
    """

    U_MIN, U_MAX = 1.5 * math.pi, 4.5 * math.pi

    def __init__(self, noise: float = 0.5) -> None:
        if not 0 < noise < math.inf:
            raise ValueError(f"noise must be above 0 (a bare curve has no density in the plane), got {noise}")
        self.centre = np.array([2.0, 2 / (3 * math.pi)])  # E[c(u)]
        mean_square = (self.U_MAX**3 - self.U_MIN**3) / (9 * math.pi)  # E[u^2] = E|c(u)|^2
        self.scale = math.sqrt((mean_square - (self.centre**2).sum()) / 2 + noise**2)
        self.noise = noise / self.scale
        self._by_panels: dict[int, Mixture] = {}
        finest = self._quadrature(self.noise)
        super().__init__(finest.weights, finest.means, finest.variances.T[:, :, None] * np.eye(2))

    def curve(self, u: np.ndarray) -> np.ndarray:
        """The middle of the roll at the angle u: (n,) -> (n, 2)."""
        return (np.stack([u * np.cos(u), u * np.sin(u)], axis=1) - self.centre) / self.scale

    def sample(self, n: int, rng: np.random.Generator, dtype: type = np.float32) -> np.ndarray:
        """n draws, of shape (n, 2), on the host."""
        u = rng.uniform(self.U_MIN, self.U_MAX, n)
        return (self.curve(u) + self.noise * rng.standard_normal((n, 2))).astype(dtype)

    def _quadrature(self, width: float) -> Mixture:
        """The roll as a Mixture good enough for Gaussians of this width: Gauss-Legendre, 16 nodes to a piece of four widths.

        Pieces of one arc length are equal in u^2 but for a part in u^4; their number is a power of 2, and each is kept.
        """
        arc_length = (self.U_MAX**2 - self.U_MIN**2) / 2 / self.scale
        panels = 2 ** max(3, math.ceil(math.log2(arc_length / (4 * width))))
        if panels not in self._by_panels:
            u, weights = gauss_legendre(np.sqrt(np.linspace(self.U_MIN**2, self.U_MAX**2, panels + 1)))
            covs = np.broadcast_to(self.noise**2 * np.eye(2), (len(u), 2, 2))
            self._by_panels[panels] = Mixture(weights / (self.U_MAX - self.U_MIN), self.curve(u), covs)
        return self._by_panels[panels]

    def _terms(self, x: Array, signal: Array, noise: Array) -> tuple[Array, list[tuple[Array, Array, Array]]]:
        """As in `Mixture`, with as many components as the narrowest level of the batch needs: noise widens each of them."""
        signal_max = signal if isinstance(signal, (int, float)) else float(signal.max())
        noise_min = noise if isinstance(noise, (int, float)) else float(noise.min())
        width = math.hypot(self.noise, noise_min / signal_max) if signal_max > 0 else math.inf
        return self._quadrature(min(width, 1.0))._terms(x, signal, noise)
