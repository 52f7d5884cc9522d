import numpy as np
import pytest
from conftest import dtypes, normal_values, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff.nn.params import flatten, leaves, map_leaves, pack, unflatten

# A tree of shapes: names to shapes, or to further trees, none of them empty.
names = st.sampled_from("abcdef")
tree_shapes = st.recursive(
    st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple),
    lambda children: st.dictionaries(names, children, min_size=1, max_size=3),
    max_leaves=6,
).map(lambda shapes: shapes if isinstance(shapes, dict) else {"a": shapes})


def fill(shapes, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)

    def build(node):
        return (
            {name: build(value) for name, value in node.items()}
            if isinstance(node, dict)
            else np.asarray(rng.standard_normal(node), dtype)
        )

    return build(shapes)


def assert_same(one, two):
    assert list(one) == list(two)
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, two[name])
        else:
            np.testing.assert_array_equal(value, two[name], strict=True)


@given(tree_shapes, seeds, dtypes)
def test_unflatten_undoes_flatten(shapes, seed, dtype):
    tree = fill(shapes, seed, dtype)
    theta = flatten(tree)
    assert theta.shape == (sum(a.size for a in leaves(tree)),) and theta.dtype == dtype
    assert_same(unflatten(theta, tree), tree)


@given(tree_shapes, seeds)
def test_theta_lays_the_leaves_end_to_end_in_the_order_of_the_tree(shapes, seed):
    tree = fill(shapes, seed)
    expected = [number for leaf in leaves(tree) for number in leaf.ravel()]
    np.testing.assert_array_equal(flatten(tree), expected)
    assert [id(a) for a in leaves(tree)] == [id(a) for a in leaves(dict(tree.items()))]


@given(tree_shapes, seeds)
def test_pack_gives_views_so_that_an_update_of_theta_is_seen(shapes, seed):
    tree = fill(shapes, seed)
    before = flatten(tree)
    theta, views = pack(tree)
    assert_same(views, tree)
    assert all(np.shares_memory(leaf, theta) for leaf in leaves(views))
    # theta is a copy of what came in.
    assert not any(np.shares_memory(leaf, theta) for leaf in leaves(tree))
    theta += 1
    np.testing.assert_array_equal(flatten(views), before + 1)
    np.testing.assert_array_equal(flatten(tree), before)


@given(tree_shapes, seeds)
def test_map_leaves_keeps_the_tree(shapes, seed):
    tree = fill(shapes, seed)
    np.testing.assert_array_equal(flatten(map_leaves(lambda a: 2 * a, tree)), 2 * flatten(tree))
    assert_same(map_leaves(lambda a: a, tree), tree)


def test_unflatten_refuses_a_vector_of_another_size():
    tree = {"w": normal_values(0, 2, 3), "b": normal_values(1, 3)}
    for size in (8, 10):
        with pytest.raises(ValueError, match=r"shape \(9,\)"):
            unflatten(np.zeros(size), tree)
    with pytest.raises(ValueError, match=r"shape \(9,\)"):
        unflatten(np.zeros((9, 1)), tree)
