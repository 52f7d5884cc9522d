"""A network recorded as CUDA graphs: the host starts it by one call instead of some hundred.

    net = Replayed(unet, cuda_ops)      net.forward and net.backward, as unet has them

At the first call with arrays of a new shape, or with other parameters, the inputs get arrays of
their own. `net.forward` is then run once more while the device only records what it is asked for;
`backward` likewise. Each call copies its inputs into those arrays and starts the graph, and while
the device works, the host draws the noise of the next step.

The output of forward is a copy. The gradients stay in the recording's arrays until the next call of
either pass. A recording has memory of its own, which it keeps until newer recordings replace it.
Nothing may come from the host while it is made: CuPy's concatenate, for one, begins with a copy
from there where it has more than eight arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import cupy
import numpy as np

from npdiff.backend import Array
from npdiff.nn.conv import check_label
from npdiff.nn.ops import Cache, check_inputs
from npdiff.nn.params import Tree, leaves

KEPT = 4  # recordings: of a training step, and of what is drawn and judged after it


class Replayed:
    """`net` with these ops, with forward and backward recorded for each shape of its input."""

    def __init__(self, net: Any, ops: Any) -> None:
        self.net, self.ops = net, ops
        self.recordings: dict[tuple, Recording] = {}

    def forward(
        self, params: Tree, x: Array, level: Array, label: np.ndarray | None = None
    ) -> tuple[Array, Cache]:
        """As net.forward. The cache is the recording and the number of its call."""
        key = tuple(leaf.data.ptr for leaf in leaves(params)), x.shape, x.dtype.char
        if key not in self.recordings:
            if len(self.recordings) == KEPT:
                del self.recordings[next(iter(self.recordings))]
            self.recordings[key] = Recording(self.net, self.ops, params, x, level)
        return self.recordings[key].forward(x, level, label)

    def backward(self, params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
        """As net.backward. RuntimeError for a cache that a later forward pass has replaced."""
        recording, call = cache
        return recording.backward(call, grad_out)


class Recording:
    """forward and backward of one network on arrays of one shape."""

    def __init__(self, net: Any, ops: Any, params: Tree, x: Array, level: Array) -> None:
        self.net, self.params, self.calls = net, params, 0
        self.stream, self.memory = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
        self.classes = len(params["embedding"]["lookup"]["table"])
        self.x, self.level = x.copy(), level.copy()
        self.label = cupy.full(len(x), net.NO_CLASS)
        forward = partial(net.forward, params, self.x, self.level, self.label, ops)
        self.replay_forward, (self.out, self.cache) = self.record(forward)
        self.grad_out: Any = None
        self.replay_backward: Any = None
        self.gradients: Any = None

    def record(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        """The graph of what function() asks of the device, and the arrays that it returns.

        graph.launch() fills these arrays.
        """
        cupy.cuda.get_current_stream().synchronize()
        with cupy.cuda.using_allocator(self.memory.malloc), self.stream:
            function()  # compiles what is not compiled yet, and takes the memory
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                result = function()
            finally:
                graph = self.stream.end_capture()
        return graph, result

    def forward(self, x: Array, level: Array, label: np.ndarray | None) -> tuple[Array, Cache]:
        check_inputs(x, level)  # the graph itself runs no check
        if label is not None:
            check_label(label, self.classes)
            if len(label) != len(x):
                raise ValueError(f"label must have shape ({len(x)},), got {label.shape}")
        self.calls += 1
        self.x[...], self.level[...] = x, level
        self.label[...] = self.net.NO_CLASS if label is None else cupy.asarray(label)
        self.replay_forward.launch()
        return self.out.copy(), (self, self.calls)

    def backward(self, call: int, grad_out: Array) -> tuple[Array, Tree]:
        if call != self.calls:
            raise RuntimeError(
                "this cache was overwritten by a later forward pass with arrays of the same shape"
            )
        if self.replay_backward is None:
            self.grad_out = grad_out.copy()
            backward = partial(self.net.backward, self.params, self.cache, self.grad_out)
            self.replay_backward, self.gradients = self.record(backward)
        self.grad_out[...] = grad_out
        self.replay_backward.launch()
        return self.gradients
