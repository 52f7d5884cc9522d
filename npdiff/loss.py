"""The objective: the loss of the network's output, and its gradient, from which training starts.

    L_simple = E |eps - eps_hat|^2,    over x_0 ~ data, t uniform on 1..T, eps ~ N(0, I)

An objective is a function of the network's output,

    loss, grad_out = objective(out, x_0, t, eps, schedule, predict)

It returns a loss for each row of the batch, averaged over the row's coordinates, and the gradient
of each row's loss with respect to that row of `out`. The mean over the batch is taken in one place,
in `train.gradient`. `predict` says what the output stands for: see `output.py`, where

    eps_hat - eps = eps_per_output (out - target)
"""

from npdiff.backend import Array
from npdiff.output import eps_per_output, target
from npdiff.schedule import Schedule, Time


def l_simple(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str = "eps"
) -> tuple[Array, Array]:
    """L_simple of each row, per coordinate: 1/d |eps - eps_hat|^2, and its gradient.

    error    = eps_hat - eps = eps_per_output (out - target)
    loss     = 1/d |error|^2
    grad_out = 2/d eps_per_output error

    Eq. (14), Ho et al. 2020, arXiv:2006.11239, divided by the number d of coordinates.

    Parameters
    ----------
    out : array of shape (B, ...), the network's output at x_t
    x_0, eps : arrays of the same shape
    predict : what `out` stands for: "eps", "x_0", "v" or "score"

    Returns
    -------
    loss : array of shape (B,)
    grad_out : array of shape (B, ...), the gradient of each row's loss

    Raises
    ------
    ValueError
        For another `predict`, a t outside 1..T, or arrays of different shapes.
    """
    slope = eps_per_output(out, t, schedule, predict)
    error = slope * output_error(out, x_0, t, eps, schedule, predict)
    return row_mean(error**2), 2 / error[0].size * slope * error


def l_target(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str = "eps"
) -> tuple[Array, Array]:
    """The squared error of the output itself, per coordinate: 1/d |out - target|^2.

    For eps and the score this is L_simple. For x_0 and v it weighs each t differently: relative to
    the error of x_0, L_simple has the weight SNR = signal^2 / noise^2, the loss of x_0 the weight 1
    and that of v the weight SNR + 1 (where the variance is preserved). Sec. 4, Salimans & Ho 2022,
    arXiv:2202.00512. Arguments and returns are those of `l_simple`.
    """
    error = output_error(out, x_0, t, eps, schedule, predict)
    return row_mean(error**2), 2 / error[0].size * error


def output_error(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str
) -> Array:
    """out - target, of shape (B, ...). ValueError where the shapes of out and x_0 differ."""
    if out.shape != x_0.shape:
        raise ValueError(f"out must have x_0's shape {x_0.shape}, got {out.shape}")
    return out - target(x_0, t, eps, schedule, predict)


def row_mean(x: Array) -> Array:
    """The mean over each row's coordinates.   x (B, ...) -> (B,)."""
    return x.reshape(len(x), -1).mean(axis=1)
