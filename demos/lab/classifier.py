"""A small convolutional classifier of digits, which judges the digits that a model draws.

    init(rng)                         -> params
    forward(params, x)                -> z, cache
    backward(params, cache, grad_z)   -> grad_x, grads

Training takes a minute or two, and the result is kept in a file. The last hidden layer gives the
features of digit_metrics.py. Like the U-Net, the classifier first turns each 2 x 2 pixels into one
pixel of four channels.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab import regular
from lab.files import write_npz
from lab.mnist import Digits, to_model
from lab.progress import Line, duration
from npdiff.backend import Array, get_array_module, to_numpy
from npdiff.fast import keep_freed_memory
from npdiff.nn.conv import conv2d_backward, conv2d_forward, depth_to_space, space_to_depth
from npdiff.nn.ops import Cache, linear_backward, linear_forward, silu_backward, silu_forward
from npdiff.nn.params import Tree, flatten, map_leaves, pack, unflatten
from npdiff.nn.unet import layer
from npdiff.optim import adam, learning_rate

# The version of the network, its input and its training. A file of another version is not used.
VERSION = 1
STEPS = 4000
PIECE = 250  # images in one call of the trained network


def init(rng: np.random.Generator, width: int = 16, hidden: int = 128, classes: int = 10) -> Tree:
    """Float32 parameters for images of shape (B, 28, 28, 1).

    The last layer starts at zero, so an untrained network gives every class the same probability.
    """
    return {
        "conv_1": layer(rng, 3, 3, 4, width),
        "conv_2": layer(rng, 3, 3, width, 2 * width),
        "conv_3": layer(rng, 3, 3, 2 * width, 4 * width),
        "hidden": layer(rng, 4 * 4 * 4 * width, hidden),
        "last": layer(rng, hidden, classes, scale=0.0),
    }


def features_forward(params: Tree, x: Array) -> tuple[Array, Cache]:
    """The last hidden layer: x (B, 28, 28, 1) -> h (B, F)."""
    h, conv_1 = conv2d_forward(space_to_depth(x), **params["conv_1"])  # (B, 14, 14, width)
    h, silu_1 = silu_forward(h)
    h, conv_2 = conv2d_forward(h, **params["conv_2"], stride=2)  # (B, 7, 7, 2 width)
    h, silu_2 = silu_forward(h)
    h, conv_3 = conv2d_forward(h, **params["conv_3"], stride=2)  # (B, 4, 4, 4 width)
    h, silu_3 = silu_forward(h)
    shape = h.shape
    h, hidden = linear_forward(h.reshape(len(x), -1), **params["hidden"])  # (B, F)
    h, silu_4 = silu_forward(h)
    return h, (conv_1, silu_1, conv_2, silu_2, conv_3, silu_3, shape, hidden, silu_4)


def forward(params: Tree, x: Array) -> tuple[Array, Cache]:
    """The logits: x (B, 28, 28, 1) -> z (B, classes). The classes have probabilities softmax(z)."""
    h, features_cache = features_forward(params, x)  # (B, F)
    z, last = linear_forward(h, **params["last"])
    return z, (features_cache, last)


def backward(params: Tree, cache: Cache, grad_z: Array) -> tuple[Array, Tree]:
    """dL/dx (B, 28, 28, 1) and dL/d(every parameter), by the forward pass in reverse order."""
    (conv_1, silu_1, conv_2, silu_2, conv_3, silu_3, shape, hidden, silu_4), last = cache
    grads: Tree = dict.fromkeys(params)  # in the order of params
    grad_h, grads["last"] = linear_backward(grad_z, last)
    grad_h, _ = silu_backward(grad_h, silu_4)
    grad_h, grads["hidden"] = linear_backward(grad_h, hidden)
    grad_h, _ = silu_backward(grad_h.reshape(shape), silu_3)
    grad_h, grads["conv_3"] = conv2d_backward(grad_h, conv_3)
    grad_h, _ = silu_backward(grad_h, silu_2)
    grad_h, grads["conv_2"] = conv2d_backward(grad_h, conv_2)
    grad_h, _ = silu_backward(grad_h, silu_1)
    grad_h, grads["conv_1"] = conv2d_backward(grad_h, conv_1)
    return depth_to_space(grad_h), grads


def cross_entropy_forward(z: Array, label: np.ndarray) -> tuple[Array, Cache]:
    """loss = -mean of log p[label] in nats, with p = softmax(z): log p = z - log(sum of exp(z)).

    z (B, classes), label (B,) on the host -> loss ().
    """
    xp = get_array_module(z)
    # Subtracting the largest z from all of them leaves p as it is, and no exp overflows.
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - xp.log(xp.exp(z).sum(axis=1, keepdims=True))  # (B, classes)
    one_hot = xp.asarray(np.eye(z.shape[1], dtype=z.dtype)[label])  # (B, classes)
    return -(one_hot * log_p).sum() / len(z), (log_p, one_hot)


def cross_entropy_backward(grad_loss: Array | float, cache: Cache) -> Array:
    """dL/dz = dL/dloss (p - one_hot) / B, since d log(sum of exp(z)) / dz = p."""
    log_p, one_hot = cache
    return grad_loss * (get_array_module(log_p).exp(log_p) - one_hot) / len(log_p)  # (B, classes)


def shifted(x: np.ndarray, rng: np.random.Generator, most: int = 2) -> np.ndarray:
    """Each image moved by at most `most` pixels along each axis: (B, H, W) -> (B, H, W).

    Pixels that leave at one border come in at the opposite one. In MNIST they are background.
    """
    batch, height, width = x.shape
    row = (np.arange(height) + rng.integers(-most, most + 1, (batch, 1))) % height  # (B, H)
    column = (np.arange(width) + rng.integers(-most, most + 1, (batch, 1))) % width  # (B, W)
    return x[np.arange(batch)[:, None, None], row[:, :, None], column[:, None, :]]


class Step(NamedTuple):
    step: int  # 1, 2, ..., steps
    loss: Array
    params: Tree  # the same arrays in every step, changed in place


def train(
    digits: Digits,
    rng: np.random.Generator,
    steps: int = STEPS,
    batch: int = 64,
    lr: float = 2e-3,
    xp: Any = np,
) -> Iterator[Step]:
    """Train on the cross-entropy of shifted training digits, by Adam. Yields every step."""
    theta, params = pack(map_leaves(xp.asarray, init(rng)))
    m, v = theta * 0, theta * 0
    for step in range(1, steps + 1):
        rows = rng.integers(len(digits.train_x), size=batch)
        x = xp.asarray(to_model(shifted(digits.train_x[rows], rng)))
        z, cache = forward(params, x)
        loss, loss_cache = cross_entropy_forward(z, digits.train_label[rows])
        grad_z = cross_entropy_backward(1.0, loss_cache)
        _, grads = backward(params, cache, grad_z)
        adam(theta, flatten(grads), m, v, step, learning_rate(step, steps, lr))
        yield Step(step, loss, params)


def load_or_train(digits: Digits, folder: Path, steps: int = STEPS, xp: Any = np) -> Tree:
    """The parameters in the folder; if they do not fit, new ones are trained and saved there.

    They fit if the same version was trained on the same labels for at least as many steps. A file
    that does not fit, or is damaged, is replaced. If the folder cannot be written to, a line says
    so.
    """
    path = folder / f"classifier_of_{len(digits.train_x)}.npz"
    key = f"{VERSION} {hashlib.sha256(digits.train_label.astype(np.uint8).tobytes()).hexdigest()}"
    params = load(path, key, steps)
    if params is None:
        params = map_leaves(to_numpy, train_with_progress(digits, steps, xp))
        save(path, key, steps, params)
    return map_leaves(xp.asarray, params)


def train_with_progress(digits: Digits, steps: int, xp: Any) -> Tree:
    """Train from a fixed seed, so the same digits give the same parameters. Prints its progress."""
    keep_freed_memory()
    line = Line()
    for step in train(digits, np.random.default_rng(0), steps, xp=xp):
        if line.due() or step.step == steps:
            left = duration(line.seconds() * (steps - step.step) / step.step)
            done = f"training the classifier {step.step:>{len(str(steps))}}/{steps}"
            text = f"{done}   loss {float(step.loss):.4f}   {left} left"
            line.show(text, last=step.step == steps)
    return step.params


def load(path: Path, key: str, steps: int) -> Tree | None:
    """The parameters in the file, if it has this key and at least so many steps of training.

    None if it does not, or if the file is missing or damaged.
    """
    if regular.problem(path):
        return None
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            if str(file["key"]) != key or int(file["steps"]) < steps:
                return None
            theta = file["theta"]
        if theta.dtype != np.float32 or not np.isfinite(theta).all():
            return None
        return unflatten(theta, init(np.random.default_rng(0)))
    except Exception:  # whatever zipfile, zlib and NumPy raise for a damaged file
        return None


def save(path: Path, key: str, steps: int, params: Tree) -> None:
    """Write the parameters in one move. If that fails, print why."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, theta=flatten(params), key=np.array(key), steps=np.array(steps))
    except OSError as error:
        reason = error.strerror or error
        print(
            f"warning: {path} cannot be written ({reason}), so the classifier is not kept; "
            "the next run trains it again"
        )


def features(params: Tree, x: np.ndarray) -> np.ndarray:
    """The last hidden layer of the trained network: x (N, 28, 28) uint8 -> (N, F) float32."""
    return in_pieces(features_forward, params, x)


def predicted(params: Tree, x: np.ndarray) -> np.ndarray:
    """The most probable class, that of the largest logit: x (N, 28, 28) uint8 -> (N,)."""
    return in_pieces(forward, params, x).argmax(axis=1)


def in_pieces(
    function: Callable[[Tree, Array], tuple[Array, Cache]], params: Tree, x: np.ndarray
) -> np.ndarray:
    """The output of function(params, x) for all images, PIECE at a time, on the host."""
    xp = get_array_module(params["last"]["w"])
    pieces = (xp.asarray(to_model(x[i : i + PIECE])) for i in range(0, len(x), PIECE))
    return np.concatenate([to_numpy(function(params, piece)[0]) for piece in pieces])
