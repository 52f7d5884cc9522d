import numpy as np
import pytest
import strict_array
from conftest import EPS_32, RecordedOps, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff.gradcheck import directional_error
from npdiff.nn import conv, unet
from npdiff.nn.params import flatten, leaves, pack, unflatten

# A small network, with two channels a group at the fine level: with one, conv_1 would have no use
# for its bias.
WIDTH, CLASSES = 16, 3


def random_theta(rng, channels=1, dtype=np.float64):
    """theta and the tree of its views, every leaf random: no gain at 1, no bias or kernel at 0."""
    theta, params = pack(unet.init(rng, channels, CLASSES, WIDTH))
    theta, params = pack(unflatten(theta.astype(dtype), params))
    theta += 0.2 * rng.standard_normal(theta.shape).astype(dtype)
    return theta, params


def inputs(rng, shape, dtype=np.float64):
    x, level = rng.standard_normal(shape).astype(dtype), rng.uniform(-8, 8, shape[0]).astype(dtype)
    return x, level, rng.integers(0, CLASSES + 1, shape[0])


def gradient_error(f, x, grad, rng):
    """The smaller error of two directions: the slope along one may be small, which costs digits."""
    return min(directional_error(f, x, grad, rng) for _ in range(2))


@settings(max_examples=12)
@given(
    seeds, st.sampled_from([(8, 8), (12, 8)]), st.integers(1, 2), st.integers(1, 3), st.booleans()
)
def test_backward_is_the_gradient(seed, size, channels, batch, labelled):
    rng = np.random.default_rng(seed)
    theta, params = random_theta(rng, channels)
    x, level, label = inputs(rng, (batch, *size, channels))
    label = label if labelled else None
    out, cache = unet.forward(params, x, level, label)
    grad_out = rng.standard_normal(out.shape)
    grad_x, grads = unet.backward(params, cache, grad_out)

    def loss(x, theta):
        return (unet.forward(unflatten(theta, params), x, level, label)[0] * grad_out).sum()

    assert gradient_error(lambda x: loss(x, theta), x, grad_x, rng) < 1e-6
    assert gradient_error(lambda theta: loss(x, theta), theta, flatten(grads), rng) < 1e-6


@pytest.mark.parametrize("labelled", [True, False])
def test_every_parameter_has_its_gradient(labelled):
    """One random direction for each leaf: an error in a small leaf would be lost in a direction of
    the whole theta."""
    rng = np.random.default_rng(1)
    theta, params = random_theta(rng)
    x, level, label = inputs(rng, (3, 8, 8, 1))
    label = label if labelled else None
    out, cache = unet.forward(params, x, level, label)
    grad_out = rng.standard_normal(out.shape)
    _, grads = unet.backward(params, cache, grad_out)
    for leaf, grad in zip(leaves(params), leaves(grads), strict=True):
        kept = leaf.copy()

        def loss(value, leaf=leaf):
            leaf[...] = value
            return (unet.forward(params, x, level, label)[0] * grad_out).sum()

        assert gradient_error(loss, kept, grad, rng) < 1e-6
        leaf[...] = kept


def names(tree):
    return {
        name: names(value) if isinstance(value, dict) else value.shape
        for name, value in tree.items()
    }


def ordered(tree):
    return [
        (name, ordered(value)) if isinstance(value, dict) else name for name, value in tree.items()
    ]


def test_grads_have_every_leaf_of_params_in_their_order():
    rng = np.random.default_rng(0)
    params = unet.init(rng)
    out, cache = unet.forward(
        params, rng.standard_normal((2, 8, 8, 1), dtype=np.float32), np.zeros(2, np.float32)
    )
    _, grads = unet.backward(params, cache, out)
    assert names(grads) == names(params) and ordered(grads) == ordered(params)


@given(seeds, st.sampled_from([(8, 8), (12, 8), (28, 28)]))
@settings(max_examples=5)
def test_an_untrained_network_puts_out_zero_in_float32(seed, size):
    rng = np.random.default_rng(seed)
    params = unet.init(rng)
    x, level, label = inputs(rng, (2, *size, 1), np.float32)
    out, cache = unet.forward(params, x, level, label)
    assert out.shape == x.shape and out.dtype == np.float32 and (out == 0).all()
    grad_x, grads = unet.backward(params, cache, x)
    assert grad_x.shape == x.shape and all(g.dtype == np.float32 for g in (grad_x, *leaves(grads)))
    assert all(p.dtype == np.float32 for p in leaves(params)) and flatten(params).size == 447_844


def test_images_of_a_batch_do_not_meet():
    """So a batch may be cut into pieces, and the sum of their gradients is the gradient."""
    rng = np.random.default_rng(2)
    theta, params = random_theta(rng)
    x, level, label = inputs(rng, (4, 8, 8, 1))
    out, cache = unet.forward(params, x, level, label)
    grad_out = rng.standard_normal(out.shape)
    whole = flatten(unet.backward(params, cache, grad_out)[1])
    parts = np.zeros_like(whole)
    for piece in (slice(0, 1), slice(1, 4)):
        out_piece, cache = unet.forward(params, x[piece], level[piece], label[piece])
        np.testing.assert_allclose(out_piece, out[piece], rtol=1e-12, atol=1e-12)
        parts += flatten(unet.backward(params, cache, grad_out[piece])[1])
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12 * abs(whole).max())


def test_no_label_is_no_class_and_the_label_after_the_last_class():
    rng = np.random.default_rng(3)
    _, params = random_theta(rng)
    x, level, _ = inputs(rng, (3, 8, 8, 1))
    none, _ = unet.forward(params, x, level)
    for label in (CLASSES, unet.NO_CLASS):
        labelled, _ = unet.forward(params, x, level, np.full(3, label))
        np.testing.assert_array_equal(none, labelled)
    assert all(
        (none != unet.forward(params, x, level, np.full(3, c))[0]).any() for c in range(CLASSES)
    )


def test_two_forwards_before_a_backward():
    """No state is kept: the first cache still gives the first gradient."""
    rng = np.random.default_rng(4)
    _, params = random_theta(rng)
    x, level, label = inputs(rng, (2, 8, 8, 1))
    out, cache = unet.forward(params, x, level, label)
    grad_x, grads = unet.backward(params, cache, out)
    unet.forward(params, x + 1, level, label)
    grad_x_again, grads_again = unet.backward(params, cache, out)
    np.testing.assert_array_equal(grad_x, grad_x_again)
    np.testing.assert_array_equal(flatten(grads), flatten(grads_again))


def test_refuses_sizes_labels_and_widths_that_do_not_fit():
    rng = np.random.default_rng(0)
    params = unet.init(rng, classes=2, width=8)
    level = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 8, 6, 1\)"):
        unet.forward(params, np.zeros((1, 8, 6, 1), np.float32), level)
    with pytest.raises(ValueError, match=r"label must be integers of shape \(B,\) in -1..2"):
        unet.forward(params, np.zeros((1, 8, 8, 1), np.float32), level, np.array([3]))
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 12"):
        unet.init(rng, width=12)


def test_a_device_array_is_never_waited_for_and_gives_the_same():
    rng = np.random.default_rng(5)
    _, params = random_theta(rng, dtype=np.float32)
    x, level, label = inputs(rng, (2, 8, 8, 1), np.float32)
    out, cache = unet.forward(params, x, level, label)
    grad_x, grads = unet.backward(params, cache, out)

    def move(tree):
        return {
            k: move(v) if isinstance(v, dict) else strict_array.asarray(v) for k, v in tree.items()
        }

    moved = move(params)
    with strict_array.no_sync():
        out_there, cache = unet.forward(
            moved, strict_array.asarray(x), strict_array.asarray(level), label
        )
        grad_x_there, grads_there = unet.backward(moved, cache, out_there)
        flat = flatten(grads_there)
    for there, here in ((out_there, out), (grad_x_there, grad_x), (flat, flatten(grads))):
        np.testing.assert_allclose(there.get(), here, rtol=0, atol=100 * EPS_32 * abs(here).max())


def test_the_rows_of_both_names_of_no_class_share_one_gradient():
    rng = np.random.default_rng(6)
    _, params = random_theta(rng)
    x, level, _ = inputs(rng, (4, 8, 8, 1))
    gradients = []
    for label in (np.array([0, CLASSES, 2, CLASSES]), np.array([0, unet.NO_CLASS, 2, CLASSES])):
        out, cache = unet.forward(params, x, level, label)
        gradients.append(flatten(unet.backward(params, cache, out)[1]))
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("labelled", [True, False])
def test_ops_that_are_handed_in_are_the_only_ones_called_forward_and_back(labelled):
    rng = np.random.default_rng(7)
    _, params = random_theta(rng)
    x, level, label = inputs(rng, (2, 8, 8, 1))
    arguments = (params, x, level, label if labelled else None)
    handed_in = RecordedOps(conv)
    (out, cache), strays = handed_in.strays(unet.forward, *arguments, handed_in)
    assert cache[0] is handed_in and not strays
    forward_calls = list(handed_in.calls)
    handed_in.calls.clear()
    (grad_x, grads), strays = handed_in.strays(unet.backward, params, cache, out)
    assert not strays
    # Each forward pass that was called has its backward pass called, in reverse.
    assert forward_calls.pop(0) == "level_waves"
    mirrored = [name.replace("_forward", "_backward") for name in reversed(forward_calls)]
    assert handed_in.calls == mirrored

    (out_plain, cache), strays = handed_in.strays(unet.forward, *arguments)
    assert "conv2d_forward" in strays and cache[0] is conv  # the plain ops, where none are given
    np.testing.assert_array_equal(out, out_plain)
    grad_x_plain, grads_plain = unet.backward(params, cache, out)
    np.testing.assert_array_equal(grad_x, grad_x_plain)
    np.testing.assert_array_equal(flatten(grads), flatten(grads_plain))


def test_the_u_on_fine_pixels_is_the_network_between_space_to_depth_and_back():
    rng = np.random.default_rng(8)
    _, params = random_theta(rng)
    x, level, label = inputs(rng, (2, 8, 12, 1))
    out, cache = unet.forward(params, x, level, label)
    fine, fine_cache = unet.fine_forward(params, conv.space_to_depth(x), level, label, conv)
    np.testing.assert_array_equal(conv.depth_to_space(fine), out)
    grad_out = rng.standard_normal(out.shape)
    grad_x, grads = unet.backward(params, cache, grad_out)
    grad_fine, grads_fine = unet.fine_backward(params, fine_cache, conv.space_to_depth(grad_out))
    np.testing.assert_array_equal(conv.depth_to_space(grad_fine), grad_x)
    np.testing.assert_array_equal(flatten(grads_fine), flatten(grads))


def test_outputs_may_differ_from_the_channels_of_x():
    params = unet.init(np.random.default_rng(0), channels=1, width=8, outputs=2)
    x, level = np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.float32)
    out, cache = unet.forward(params, x, level)
    assert out.shape == (2, 8, 8, 2)
    grad_x, grads = unet.backward(params, cache, out)
    assert grad_x.shape == x.shape and names(grads) == names(params)
