"""A network that takes its rows some at a time, so a large batch does not fill the memory."""

from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn.params import Tree


class InPieces:
    """`net` for forward passes alone, at most `rows` rows in each. It keeps no cache."""

    def __init__(self, net: Any, rows: int = 500) -> None:
        self.net, self.rows = net, rows
        if hasattr(net, "NO_CLASS"):
            self.NO_CLASS = net.NO_CLASS

    def forward(
        self, params: Tree, x: Array, level: Array, label: np.ndarray | None = None
    ) -> tuple[Array, None]:
        """As net.forward, with None for the cache."""
        outputs = []
        for i in range(0, len(x), self.rows):
            piece = slice(i, i + self.rows)
            labels = () if label is None else (label[piece],)
            out, _ = self.net.forward(params, x[piece], level[piece], *labels)
            outputs.append(out)
        return get_array_module(x).concatenate(outputs), None
