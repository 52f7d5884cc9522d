"""On CuPy: the engine's ops agree with the plain ones, and a replayed network with the network."""

import inspect
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import cupy_or_skip

from npdiff import optim, train
from npdiff.backend import to_numpy
from npdiff.nn import conv, mlp, ops, unet
from npdiff.nn.params import flatten, leaves, map_leaves, pack
from npdiff.schedule import cosine

cupy = cupy_or_skip()

from npdiff.fast import cuda_ops as cuda  # noqa: E402 (these import CuPy)
from npdiff.fast import engine, fused, graphs, im2col  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::ResourceWarning")]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # sums of at most some hundred, in another order


def values(seed, *shape, dtype="float64"):
    return cupy.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def assert_same(found, expected):
    """Arrays, or trees of arrays, equal to rounding, relative to the largest."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif expected is not None:
        assert found.dtype == expected.dtype and found.shape == expected.shape
        a, b = to_numpy(found), to_numpy(expected)
        assert np.abs(a - b).max() < TOLERANCE[str(a.dtype)] * np.abs(b).max()


OPS = {
    "conv 3": ("conv2d", conv, (2, 5, 6, 8), [(3, 3, 8, 16), (16,)], {}),
    "conv 3, stride 2, odd": ("conv2d", conv, (2, 5, 6, 8), [(3, 3, 8, 16), (16,)], {"stride": 2}),
    "conv 3, stride 2, even": ("conv2d", conv, (2, 4, 6, 4), [(3, 3, 4, 8), (8,)], {"stride": 2}),
    "conv 1": ("conv2d", conv, (2, 5, 6, 8), [(1, 1, 8, 16), (16,)], {}),
    "conv 5": ("conv2d", conv, (3, 4, 4, 3), [(5, 5, 3, 2), (2,)], {}),
    "group norm, groups of 1": ("group_norm", conv, (2, 4, 6, 8), [(8,), (8,)], {"groups": 8}),
    "group norm, groups of 3": ("group_norm", conv, (3, 7, 7, 12), [(12,), (12,)], {"groups": 4}),
    "group norm, one group": ("group_norm", conv, (2, 3, 3, 8), [(8,), (8,)], {"groups": 1}),
    "linear": ("linear", ops, (5, 4), [(4, 3), (3,)], {}),
    "silu": ("silu", ops, (5, 4), [], {}),
    "upsample": ("upsample", conv, (2, 3, 4, 5), [], {}),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", OPS)
def test_an_op_and_its_gradients_are_the_plain_ones(case, dtype):
    name, module, shape, parameters, settings = OPS[case]
    x, *params = (values(i, *s, dtype=dtype) for i, s in enumerate([shape, *parameters]))
    results = []
    for of in cuda, module:
        y, cache = getattr(of, f"{name}_forward")(x, *params, **settings)
        grad_x, grads = getattr(of, f"{name}_backward")(values(9, *y.shape, dtype=dtype), cache)
        results.append({"y": y, "grad_x": grad_x, **grads})
    assert_same(*results)


def test_a_view_is_taken_as_an_array():
    both = values(0, 2, 4, 4, 16, dtype="float32")
    half, w = both[..., :8], values(1, 3, 3, 8, 8, dtype="float32")
    assert_same(cuda.columns(half, 3), cupy.asarray(im2col.columns(to_numpy(half), 3)))
    gain = values(2, 8, dtype="float32")
    (y, cache), (expected, plain_cache) = (
        of.group_norm_forward(half, gain, gain, groups=4) for of in (cuda, conv)
    )
    assert_same(y, expected)
    grad = values(3, 2, 4, 4, 16, dtype="float32")[..., 8:]
    assert_same(
        cuda.group_norm_backward(grad, cache)[0], conv.group_norm_backward(grad, plain_cache)[0]
    )
    _, cache = cuda.conv2d_forward(half, w, gain)
    _, plain_cache = conv.conv2d_forward(half, w, gain)
    assert_same(cuda.conv2d_backward(grad, cache)[0], conv.conv2d_backward(grad, plain_cache)[0])


def test_group_norm_of_a_large_constant_is_the_bias():
    constants = np.linspace(1234.5, 4321.1, 8, dtype="float32").reshape(8, 1, 1, 1)
    x, gain, bias = (
        cupy.asarray(np.tile(constants, (1, 7, 7, 12))),
        values(0, 12, dtype="float32"),
        values(1, 12, dtype="float32"),
    )
    y, _ = cuda.group_norm_forward(x, gain, bias, groups=4)  # 147 of them, whose sum is rounded
    np.testing.assert_allclose(to_numpy(y), np.broadcast_to(to_numpy(bias), y.shape), atol=1e-6)


@pytest.mark.parametrize("channels", [8, 12, 64])
def test_scale_and_shift_go_back_as_in_the_plain_op(channels):
    x, scale, shift = (
        values(0, 3, 4, 5, channels),
        values(1, 3, 2 * channels)[:, :channels],
        values(2, 3, channels),
    )
    y, cache = conv.scale_shift_forward(x, scale, shift)
    assert_same(cuda.scale_shift_forward(x, scale, shift)[0], y)
    grad_y = values(3, *x.shape)
    for found, expected in zip(
        cuda.scale_shift_backward(grad_y, cache),
        conv.scale_shift_backward(grad_y, cache),
        strict=True,
    ):
        assert_same(found, expected)


def test_a_label_may_be_on_the_device():
    table, label, grad_y = values(0, 5, 3), np.array([4, 0, -1]), values(1, 3, 3)
    plain, plain_cache = conv.lookup_forward(label, table)
    for where in label, cupy.asarray(label):
        y, cache = cuda.lookup_forward(where, table)
        assert_same(y, plain)
        assert_same(
            cuda.lookup_backward(grad_y, cache)[1], conv.lookup_backward(grad_y, plain_cache)[1]
        )
    with pytest.raises(ValueError, match="label"):
        cuda.lookup_forward(np.array([5]), table)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_level_waves_are_the_plain_ones_beyond_the_range_of_levels_too(dtype):
    level = cupy.asarray(np.linspace(-9, 9, 7).astype(dtype))
    assert_same(cuda.level_waves(level, unet.FREQUENCIES), ops.level_waves(level, unet.FREQUENCIES))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_fused_adam_is_adam(dtype):
    one, two = ([values(i, 50, dtype=dtype) for i in range(3)] for _ in range(2))
    for of, (theta, m, v) in ((optim.adam, one), (fused.adam, two)):
        v *= v  # a mean of squares is not negative
        for step in range(1, 4):
            of(theta, values(10 + step, 50, dtype=dtype), m, v, step, 0.01, decay_2=0.99)
    for a, b in zip(one, two, strict=True):
        assert_same(a, b)


def test_the_cuda_ops_are_a_complete_namespace():
    needed = {name for name in vars(conv) if name.endswith(("_forward", "_backward"))}
    for name in needed | {"level_waves"}:
        plain, found = (inspect.signature(getattr(ops, name)) for ops in (conv, cuda))
        assert [*plain.parameters] == [*found.parameters], name


def small_unet(seed=0, width=8):
    theta, params = pack(unet.init(np.random.default_rng(seed), width=width))
    noise = np.random.default_rng(seed + 1).standard_normal(theta.size, dtype=np.float32)
    theta += 0.1 * noise  # training starts with zeros; here nothing is 0
    return pack(map_leaves(cupy.asarray, params))[1]


def passes(net, params, seed, label=True):
    """out, dL/dx and dL/dtheta of a batch."""
    rng = np.random.default_rng(seed)
    x, grad_out = (
        cupy.asarray(rng.standard_normal((2, 8, 8, 1), dtype=np.float32)) for _ in range(2)
    )
    level = cupy.asarray(rng.standard_normal(2, dtype=np.float32))
    out, cache = net.forward(params, x, level, rng.integers(0, 10, 2) if label else None)
    grad_x, grads = net.backward(params, cache, grad_out)
    return {"out": out, "grad_x": grad_x.copy(), "grads": flatten(grads)}


def assert_same_passes(one, other):
    for name in other:
        a, b = to_numpy(one[name]), to_numpy(other[name])
        assert np.linalg.norm(a - b) < 2e-5 * np.linalg.norm(b), name


@pytest.mark.parametrize("label", [True, False])
def test_the_u_net_of_the_cuda_ops_is_the_u_net(label):
    params = small_unet()
    fast_unet = SimpleNamespace(forward=partial(unet.forward, ops=cuda), backward=unet.backward)
    assert_same_passes(passes(fast_unet, params, 3, label), passes(unet, params, 3, label))


@pytest.mark.parametrize(
    "net, shape, sizes",
    [(mlp, (6, 2), {"hidden": 8, "layers": 1}), (unet, (2, 8, 8, 1), {"width": 8})],
)
def test_the_engine_trains_as_the_book_does(net, shape, sizes):
    def trained(net_or_engines, update):
        rng = np.random.default_rng(0)
        state = train.start(map_leaves(cupy.asarray, net.init(rng, **sizes)), "v")
        sample = lambda n, rng: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
        schedule, batch = cosine(10), shape[0]
        steps = train.train(net_or_engines, state, sample, schedule, rng, 3, batch, update=update)
        return *steps, state

    fast_net, _, fast_update = engine(net, cupy)
    *_, found = trained(fast_net, fast_update)
    *_, expected = trained(net, train.update)
    # Adam divides by the root of v, which magnifies the rounding of small gradients.
    for name in ("theta", "ema", "m"):
        a, b = (to_numpy(getattr(state, name)) for state in (found, expected))
        assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b), name


@pytest.fixture
def recordable():
    """Skips the test where no graph can be recorded, as where CuPy's kernels run on no GPU."""
    if not cuda.recordable():
        pytest.skip("no graphs can be recorded here")


def test_a_replayed_net_is_the_net_for_new_inputs_and_new_parameters(recordable):
    params, net = small_unet(), graphs.Replayed(unet, cuda)
    for seed in range(6):
        label = seed % 2 == 0
        assert_same_passes(passes(net, params, seed, label), passes(unet, params, seed, label))
        for leaf in leaves(params):
            leaf *= 1.01
    assert len(net.recordings) == 1
    other = small_unet(5)
    assert_same_passes(passes(net, other, 0), passes(unet, other, 0))
    assert len(net.recordings) == 2


def test_a_cache_that_was_overwritten_is_refused(recordable):
    params, net = small_unet(), graphs.Replayed(unet, cuda)
    x, level = values(0, 2, 8, 8, 1, dtype="float32"), values(1, 2, dtype="float32")
    (_, first), (out, second) = net.forward(params, x, level), net.forward(params, x, level)
    with pytest.raises(RuntimeError, match="overwritten"):
        net.backward(params, first, out)
    net.backward(params, second, out)


def test_a_replayed_net_refuses_what_the_net_refuses(recordable):
    params, net = small_unet(), graphs.Replayed(unet, cuda)
    x, level = values(0, 2, 8, 8, 1, dtype="float32"), values(1, 2, dtype="float32")
    net.forward(params, x, level)
    for wrong in np.array([3]), np.array([3, 11]), np.array([3.0, 4.0]):
        with pytest.raises(ValueError, match="label"):
            net.forward(params, x, level, wrong)
    with pytest.raises(ValueError, match="level"):
        net.forward(params, x, level[:1])
