"""theta: all parameters of a network as one vector.

A network sees a tree of named arrays, {"first": {"w": ..., "b": ...}, ...}; an optimiser sees one
vector. `pack` gives both the same memory: the arrays of the tree are views of theta, so the network
sees every update of theta.
"""

import math
from collections.abc import Callable

from npdiff.backend import Array, get_array_module

Tree = dict  # of arrays, and of further trees


def leaves(tree: Tree) -> list[Array]:
    """The arrays of the tree, in the tree's own order."""
    return [
        leaf
        for value in tree.values()
        for leaf in (leaves(value) if isinstance(value, dict) else [value])
    ]


def names(tree: Tree) -> list:
    """The names of the tree, and of the trees in it, in the tree's own order."""
    return [
        (name, names(value)) if isinstance(value, dict) else name for name, value in tree.items()
    ]


def flatten(tree: Tree, like: Tree | None = None) -> Array:
    """The arrays of the tree, laid end to end, of shape (P,).

    A tree of gradients becomes dL/dtheta, in theta's order. Give the parameters as `like`: it
    raises ValueError where the two trees differ in their names, or in the order of these.
    """
    if like is not None and names(tree) != names(like):
        raise ValueError(
            f"gradients must have the parameters' names in their order, {names(like)}, "
            f"got {names(tree)}"
        )
    arrays = leaves(tree)
    return get_array_module(arrays[0]).concatenate([a.reshape(-1) for a in arrays])


def unflatten(theta: Array, like: Tree) -> Tree:
    """theta as a tree of views, with the names and shapes of `like`.

    ValueError where the sizes differ.
    """
    size = sum(a.size for a in leaves(like))
    if theta.shape != (size,):
        raise ValueError(
            f"theta must have shape ({size},), as these parameters do, got {theta.shape}"
        )
    tree, start = {}, 0
    for name, value in like.items():
        if isinstance(value, dict):
            stop = start + sum(a.size for a in leaves(value))
            tree[name] = unflatten(theta[start:stop], value)
        else:
            stop = start + math.prod(value.shape)
            tree[name] = theta[start:stop].reshape(value.shape)
        start = stop
    return tree


def pack(tree: Tree) -> tuple[Array, Tree]:
    """theta, of shape (P,), and the same tree as views of it."""
    theta = flatten(tree)
    return theta, unflatten(theta, tree)


def map_leaves(function: Callable[[Array], Array], tree: Tree) -> Tree:
    """The same tree, with function(array) for each array."""
    return {
        name: map_leaves(function, value) if isinstance(value, dict) else function(value)
        for name, value in tree.items()
    }
