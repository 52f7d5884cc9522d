"""A small convolutional classifier of digits, by which drawn digits are judged. It is trained in less than a minute, and kept.

    init(rng) -> params;    forward(params, x) -> z, cache;    backward(params, cache, grad_z) -> grad_x, grads

Its last hidden layer gives the features of demos/_digit_metrics.py. Like the U-Net it looks at 2 x 2 pixels as one.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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

VERSION = 1  # of the network, its input and its training: a kept classifier of another version is not taken
STEPS = 4000
PIECE = 250  # images in one call of the trained network


def init(rng: np.random.Generator, width: int = 16, hidden: int = 128, classes: int = 10) -> Tree:
    """Float32 parameters for x of shape (B, 28, 28, 1). The last layer starts at zero: an untrained network finds all classes equal."""
    return {
        "conv_1": layer(rng, 3, 3, 4, width),
        "conv_2": layer(rng, 3, 3, width, 2 * width),
        "conv_3": layer(rng, 3, 3, 2 * width, 4 * width),
        "hidden": layer(rng, 4 * 4 * 4 * width, hidden),
        "last": layer(rng, hidden, classes, scale=0.0),
    }


def features_forward(params: Tree, x: Array) -> tuple[Array, Cache]:
    """The last hidden layer, of shape (B, F), for x of shape (B, 28, 28, 1)."""
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
    """z of shape (B, classes), for x of shape (B, 28, 28, 1): the class's probability is softmax(z)."""
    h, features_cache = features_forward(params, x)  # (B, F)
    z, last = linear_forward(h, **params["last"])
    return z, (features_cache, last)


def backward(params: Tree, cache: Cache, grad_z: Array) -> tuple[Array, Tree]:
    """dL/dx of shape (B, 28, 28, 1), and dL/d(every parameter): the lines of the forward pass, reversed."""
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


def cross_entropy_forward(
    z: Array, label: np.ndarray
) -> tuple[Array, Cache]:  # z (B, classes), label (B,) on the host -> loss ()
    """loss = -(the mean of log p[label]) in nats, with p = softmax(z), so log p = z - log(the sum of exp(z)).

    p does not change when the largest z is taken from all of them; then no exp overflows, and their sum is at least 1.
    """
    xp = get_array_module(z)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - xp.log(xp.exp(z).sum(axis=1, keepdims=True))  # (B, classes)
    one_hot = xp.asarray(np.eye(z.shape[1], dtype=z.dtype)[label])  # (B, classes)
    return -(one_hot * log_p).sum() / len(z), (log_p, one_hot)


def cross_entropy_backward(grad_loss: Array | float, cache: Cache) -> Array:
    """dL/dz = dL/dloss (p - one_hot) / B:  d log p[label] / dz = one_hot - p, for d log(sum of exp(z)) / dz = p."""
    log_p, one_hot = cache
    return grad_loss * (get_array_module(log_p).exp(log_p) - one_hot) / len(log_p)  # (B, classes)


def shifted(
    x: np.ndarray, rng: np.random.Generator, most: int = 2
) -> np.ndarray:  # (B, H, W) -> (B, H, W)
    """Each image moved by at most `most` pixels along each axis; what leaves at one border, background here, comes in at the other."""
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
    """Adam on the cross-entropy of shifted training digits."""
    theta, params = pack(map_leaves(xp.asarray, init(rng)))
    m, v = theta * 0, theta * 0
    for step in range(1, steps + 1):
        drawn = rng.integers(len(digits.train_x), size=batch)
        x = xp.asarray(to_model(shifted(digits.train_x[drawn], rng)))
        z, cache = forward(params, x)
        loss, loss_cache = cross_entropy_forward(z, digits.train_label[drawn])
        grad_z = cross_entropy_backward(1.0, loss_cache)
        _, grads = backward(params, cache, grad_z)
        adam(theta, flatten(grads), m, v, step, learning_rate(step, steps, lr))
        yield Step(step, loss, params)


def load_or_train(digits: Digits, folder: Path, steps: int = STEPS, xp: Any = np) -> Tree:
    """The parameters kept in the folder, where these training labels gave them in as many steps or more; else new ones, kept there.

    A file that is damaged, or of another version or other labels, is replaced; a folder that cannot be written to is no error.
    """
    path = folder / f"classifier_of_{len(digits.train_x)}.npz"
    key = f"{VERSION} {hashlib.sha256(digits.train_label.astype(np.uint8).tobytes()).hexdigest()}"
    params = load(path, key, steps)
    if params is None:
        params = map_leaves(to_numpy, train_with_line(digits, steps, xp))
        keep(path, key, steps, params)
    return map_leaves(xp.asarray, params)


def train_with_line(digits: Digits, steps: int, xp: Any) -> Tree:
    """The trained parameters; a progress line meanwhile. The same digits give the same parameters: the seed is 0."""
    keep_freed_memory()
    line = Line()
    for step in train(digits, np.random.default_rng(0), steps, xp=xp):
        if line.due() or step.step == steps:
            left = duration(line.seconds() * (steps - step.step) / step.step)
            done = f"training the classifier {step.step:>{len(str(steps))}}/{steps}"
            line.show(
                f"{done}   loss {float(step.loss):.4f}   {left} left", last=step.step == steps
            )
    return step.params


def load(path: Path, key: str, steps: int) -> Tree | None:
    """The parameters kept under this key after at least so many steps; None where there are none, or the file is damaged."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            fits = str(file["key"]) == key and int(file["steps"]) >= steps
            return unflatten(file["theta"], init(np.random.default_rng(0))) if fits else None
    except Exception:  # whatever zipfile, zlib and NumPy make of a damaged file
        return None


def keep(path: Path, key: str, steps: int, params: Tree) -> None:
    """Write the parameters in one move, or say in a line why not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, theta=flatten(params), key=np.array(key), steps=np.array(steps))
    except OSError as error:
        print(
            f"the classifier is not kept: {path} cannot be written ({error.strerror or error}); the next run trains it again"
        )


def features(params: Tree, x: np.ndarray) -> np.ndarray:  # x (N, 28, 28) uint8 -> (N, F) float32
    """The last hidden layer of the trained network."""
    return in_pieces(features_forward, params, x)


def predicted(params: Tree, x: np.ndarray) -> np.ndarray:  # x (N, 28, 28) uint8 -> (N,)
    """The class that the trained network finds most probable: that of the largest z."""
    return in_pieces(forward, params, x).argmax(axis=1)


def in_pieces(
    function: Callable[[Tree, Array], tuple[Array, Cache]], params: Tree, x: np.ndarray
) -> np.ndarray:
    """What function(params, x) gives for all x, PIECE images at a time, on the host."""
    xp = get_array_module(params["last"]["w"])
    pieces = (xp.asarray(to_model(x[i : i + PIECE])) for i in range(0, len(x), PIECE))
    return np.concatenate([to_numpy(function(params, piece)[0]) for piece in pieces])
