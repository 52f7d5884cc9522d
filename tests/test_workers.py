"""A network shared among processes is the network: forward, backward, training and sampling."""

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import pytest

from npdiff import fast
from npdiff.fast.workers import Pieces, Workers, keep_freed_memory, vector_behind
from npdiff.loss import l_target
from npdiff.nn import conv, mlp, unet
from npdiff.nn.params import flatten, leaves, unflatten
from npdiff.papers import ncsn, vdm
from npdiff.reverse import predictor
from npdiff.schedule import cosine
from npdiff.train import gradient, start, train

SCHEDULE = cosine(50)


def batch(n, seed=0, net=unet):
    """Parameters of which none is 0, x_0, t, eps and label."""
    rng = np.random.default_rng(seed)
    params = net.init(rng, width=16)
    noise = rng.standard_normal(flatten(params).size, dtype=np.float32)
    params = unflatten(flatten(params) + 0.1 * noise, params)
    x_0, eps = rng.standard_normal((2, n, 8, 8, 1), dtype=np.float32)
    return params, x_0, rng.integers(1, 51, size=n), eps, rng.integers(-1, 11, size=n)


def of(net, batch, **settings):
    """Losses and gradient of the squared error of v."""
    params, x_0, t, eps, label = batch
    return gradient(net, params, x_0, t, eps, SCHEDULE, "v", l_target, label=label, **settings)


@pytest.fixture(scope="module")
def two():
    workers = Workers(unet, 2, 4)
    yield workers
    workers.stop()


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_any_number_of_workers_gives_the_same_gradient_to_the_bit_and_the_plain_one_to_rounding(
    two,
):
    plain_losses, plain = of(unet, batch(11))
    results = [
        of(workers, batch(11)) for workers in (Workers(unet, 1, 4), two, Workers(unet, 3, 4))
    ]
    for losses, grad in results:
        assert np.array_equal(losses, results[0][0]) and np.array_equal(grad, results[0][1])
        assert grad.dtype == losses.dtype == np.float32
    np.testing.assert_allclose(results[0][0], plain_losses, rtol=1e-4)
    assert np.isclose(results[0][0].mean(), plain_losses.mean(), rtol=1e-5)
    assert relative(results[0][1], plain) < 1e-5


@pytest.mark.parametrize("with_label", [True, False])
def test_a_pass_there_and_back_is_the_networks_own(two, with_label):
    params, x, _, grad_out, label = batch(7)
    label = label if with_label else None
    level = np.linspace(-2, 2, 7, dtype=np.float32)
    (out, cache), (plain_out, plain_cache) = (
        net.forward(params, x, level, label) for net in (two, unet)
    )
    assert relative(out, plain_out) < 1e-5
    (grad_x, grads), (plain_grad_x, plain_grads) = (
        two.backward(params, cache, grad_out),
        unet.backward(params, plain_cache, grad_out),
    )
    assert relative(grad_x, plain_grad_x) < 1e-5
    assert relative(flatten(grads), flatten(plain_grads)) < 1e-5
    assert [a.shape for a in leaves(grads)] == [a.shape for a in leaves(params)]
    vector = vector_behind(grads)
    assert all(np.shares_memory(a, vector) for a in leaves(grads))


def test_a_forward_pass_alone_is_shared_too(two):
    params, x, _, _, label = batch(7)
    level = np.linspace(-2, 2, 7, dtype=np.float32)
    for given in None, label:
        out, cache = two.forward_alone(params, x, level, given)
        assert cache is None
        assert relative(out, unet.forward(params, x, level, given)[0]) < 1e-5
        assert np.array_equal(out, two.forward_alone(params, x, level, label=given)[0])
        assert np.array_equal(out, two.forward(params, x, level, given)[0])


@pytest.mark.parametrize("net", [vdm, ncsn], ids=["vdm", "ncsn"])
def test_a_wrapper_network_passes_the_ops_on(net):
    workers, (params, x, _, _, label) = Workers(net, 2, 4), batch(5, net=net)
    level = np.linspace(-2, 2, 5, dtype=np.float32)
    (out, cache), (plain_out, plain_cache) = (
        each.forward(params, x, level, label) for each in (workers, net)
    )
    assert relative(out, plain_out) < 1e-5
    (grad_x, grads), (plain_grad_x, plain) = (
        workers.backward(params, cache, plain_out),
        net.backward(params, plain_cache, plain_out),
    )
    assert relative(grad_x, plain_grad_x) < 1e-5
    assert relative(flatten(grads), flatten(plain)) < 1e-5
    alone, _ = workers.forward_alone(params, x, level, label)
    assert np.array_equal(alone, out)
    workers.stop()


@pytest.mark.parametrize("net", [unet, vdm, ncsn, mlp])
def test_the_engine_keeps_what_training_and_sampling_ask_of_a_network(net):
    made = fast.engine(net)
    for engine_net in made.net, made.forward_net:
        for name in "init", "NO_CLASS":
            assert getattr(engine_net, name, None) == getattr(net, name, None)
    assert not hasattr(made.forward_net, "backward")


def test_the_book_is_untouched_where_the_workers_were_started(two):
    of(two, batch(3))
    assert unet.conv is conv and unet.forward.__defaults__ == (None, conv)


def test_workers_see_what_changes_theta(two):
    arguments = batch(6)
    before, _ = of(two, arguments)
    arguments[0]["last"]["b"] += 1
    after, _ = of(two, arguments)
    assert not np.isclose(after, before).any()
    plain, _ = of(unet, arguments)
    np.testing.assert_allclose(after, plain, rtol=1e-4)
    assert np.isclose(after.mean(), plain.mean(), rtol=1e-5)


def test_workers_see_the_names_of_the_parameters_and_not_their_shapes_alone():
    params = mlp.init(np.random.default_rng(0), hidden=8, layers=2)
    params["last"]["w"] += 1
    order = ("first", "layer_2", "layer_1", "last")  # another network, of the same shapes
    workers, x, level = Workers(mlp, 1, 4), np.ones((2, 2), np.float32), np.zeros(2, np.float32)
    for tree in params, {name: params[name] for name in order}:
        np.testing.assert_allclose(
            workers.forward(tree, x, level)[0], mlp.forward(tree, x, level)[0], rtol=1e-5
        )


def test_float64_stays_float64(two):
    params, x_0, t, eps, label = batch(6)
    params = unflatten(flatten(params).astype(np.float64), params)
    wide = params, x_0.astype(np.float64), t, eps.astype(np.float64), label
    losses, grad = of(two, wide)
    assert losses.dtype == grad.dtype == np.float64
    assert relative(grad, of(unet, wide)[1]) < 1e-12


def test_a_cache_that_a_later_forward_has_replaced_is_refused(two):
    params, x, _, grad_out, label = batch(6)
    level = np.zeros(6, np.float32)
    _, first = two.forward(params, x, level, label)
    _, second = two.forward(params, x[:5], level[:5], label[:5])
    with pytest.raises(RuntimeError, match="later forward pass"):
        two.backward(params, first, grad_out)
    two.backward(params, second, grad_out[:5])
    # Workers of another theta, or of more pieces, are other processes, which hold no cache.
    two.forward_alone(unflatten(flatten(params).astype(np.float64), params), x, level, label)
    with pytest.raises(RuntimeError, match="later forward pass"):
        two.backward(params, second, grad_out[:5])


def test_a_cache_of_other_workers_is_refused():
    """The numbers of the calls are the same here."""
    params, x, _, grad_out, _ = batch(4)
    one, other = Workers(unet, 1, 4), Workers(unet, 1, 4)
    (_, first), (_, second) = (
        each.forward(params, x, grad_out[:, 0, 0, 0]) for each in (one, other)
    )
    assert first[1] == second[1]
    with pytest.raises(RuntimeError, match="this cache"):
        one.backward(params, second, grad_out)


def test_a_forward_pass_replaces_all_caches_of_the_one_before_it():
    params, x, _, _, label = batch(6)
    pieces, level = Pieces(unet, params, np.empty((0, 0))), np.zeros(6, np.float32)
    cut = [(i, (x[i : i + 2], level[:2], label[i : i + 2])) for i in (0, 2, 4)]
    pieces.answers("forward", cut)
    assert {*pieces.caches} == {0, 2, 4}
    pieces.answers("forward_alone", cut[:1])
    assert {*pieces.caches} == {0, 2, 4}
    pieces.answers("forward", cut[1:2])
    assert {*pieces.caches} == {2}


def test_gradients_in_another_order_than_the_parameters_are_refused():
    def backward(params, cache, grad_out):
        grad_x, grads = mlp.backward(params, cache, grad_out)
        return grad_x, {name: grads[name] for name in reversed(grads)}

    params = mlp.init(np.random.default_rng(0))
    net = types.SimpleNamespace(forward=mlp.forward, backward=backward)
    x, level = np.ones((3, 2), np.float32), np.zeros(3, np.float32)
    pieces = Pieces(net, params, np.empty((1, flatten(params).size)))
    pieces.answers("forward", [(0, (x, level))])
    ((_, error),) = pieces.answers("backward", [(0, (x,))])
    with pytest.raises(ValueError, match="order"):
        raise error


def test_a_forward_pass_alone_with_another_theta_leaves_the_gradient_as_it_is(two):
    params, x, _, grad_out, label = batch(6)
    averaged = unflatten(0.5 * flatten(params), params)
    level = np.zeros(6, np.float32)
    grads = []
    for between in False, True:
        _, cache = two.forward(params, x, level, label)
        if between:
            two.forward_alone(averaged, x, level, label)
        grads.append(flatten(two.backward(params, cache, grad_out)[1]))
    assert np.array_equal(*grads)


def test_forward_passes_without_a_backward_pass_hold_the_last_caches_alone(two):
    """A worker's memory after many forward passes is what it was after a few."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    params, x, _, _, label = batch(16)
    level = np.zeros(16, np.float32)

    def resident():
        pids = [child.pid for child in multiprocessing.active_children()]
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)

    for _ in range(5):
        two.forward(params, x, level, label)
    pages = resident()
    for _ in range(40):  # 16 rows save some 5 MB
        two.forward(params, x, level, label)
    assert resident() - pages < 5_000  # 20 MB


def test_a_predictor_gives_each_row_its_own_t_and_label(two):
    params, x_t, t, _, label = batch(11)
    network = fast.with_passes(unet, forward=two.forward_alone)
    for guidance in 0.0, 0.5:
        plain, shared = (
            predictor(net, params, SCHEDULE, "v", guidance, label=label) for net in (unet, network)
        )
        for time_ in (t, 20):
            assert relative(shared(x_t, time_), plain(x_t, time_)) < 1e-4


def test_a_network_without_labels_is_shared_too():
    net, forward_net, _ = fast.engine(mlp, threads=2, rows=4)
    params = mlp.init(np.random.default_rng(0))
    params["last"]["w"] += 1
    x = np.random.default_rng(1).standard_normal((10, 2), dtype=np.float32)
    plain = predictor(mlp, params, SCHEDULE)(x, 3)
    for network in net, forward_net:
        np.testing.assert_allclose(predictor(network, params, SCHEDULE)(x, 3), plain, rtol=1e-5)
    assert not hasattr(forward_net, "NO_CLASS")


def test_the_pieces_are_every_row_once_whatever_the_size():
    rows, other = np.arange(10), np.arange(20).reshape(10, 2)
    for size in (1, 3, 5, 10, 64):
        pieces = Workers(unet, 1, size).cut(rows, other, None)
        for given, parts in zip((rows, other), zip(*pieces, strict=True), strict=True):
            assert np.array_equal(np.concatenate(parts), given)
            assert max(map(len, parts)) == min(size, 10)


def test_theta_is_the_vector_behind_the_views_or_a_copy():
    state = start(mlp.init(np.random.default_rng(0)))
    assert vector_behind(state.params) is state.theta
    assert vector_behind(state.ema_params) is state.ema
    part = {"first": state.params["first"]}  # views of a vector, but not of all of it
    reordered = {name: state.params[name] for name in reversed(state.params)}
    loose = mlp.init(np.random.default_rng(0))
    vector = np.arange(6.0)
    transposed = {"w": vector.reshape(2, 3).T}
    swapped = {"a": vector[:2], "b": vector[4:], "c": vector[2:4]}
    strided = {"a": np.arange(12.0)[::2]}
    for params in part, reordered, loose, transposed, swapped, strided:
        theta = vector_behind(params)
        assert np.array_equal(theta, flatten(params))
        assert not any(np.shares_memory(theta, a) for a in leaves(params))


def test_training_gives_the_same_theta_for_any_number_of_workers():
    def trained(threads):
        net, _, update = fast.engine(mlp, threads=threads, rows=4)
        rng = np.random.default_rng(3)
        state = start(mlp.init(rng))
        sample = lambda n, rng: rng.standard_normal((n, 2), dtype=np.float32)  # noqa: E731
        steps = train(net, state, sample, SCHEDULE, rng, 4, batch=10, update=update)
        return [step.loss for step in steps], state.theta

    losses, theta = trained(1)
    for threads in 2, 3:
        assert trained(threads)[0] == losses and np.array_equal(trained(threads)[1], theta)


def test_an_error_in_a_piece_reaches_the_caller_and_the_next_call_works(two):
    params, x_0, t, eps, label = batch(6)
    right = of(two, batch(6))
    wrong = label.copy()
    wrong[5] = 11
    with pytest.raises(ValueError, match="label"):
        of(two, (params, x_0, t, eps, wrong))
    assert np.array_equal(of(two, batch(6))[0], right[0])


class InterruptedPipe:
    """A pipe at which Ctrl-C arrives once, while the answer of its worker is awaited."""

    def __init__(self, pipe):
        self.send, self.close, self.pipe = pipe.send, pipe.close, pipe

    def recv(self):
        self.recv = self.pipe.recv
        raise KeyboardInterrupt


def test_after_an_interrupt_late_answers_and_old_caches_do_not_count():
    workers, (params, x, _, grad_out, label) = Workers(unet, 2, 4), batch(11)
    level = np.zeros(11, np.float32)
    right, cache = workers.forward(params, x, level, label)
    workers.pipes[1] = InterruptedPipe(workers.pipes[1])
    with pytest.raises(KeyboardInterrupt):
        workers.forward_alone(params, 2 * x, level, label)
    with pytest.raises(RuntimeError, match="this cache"):
        workers.backward(params, cache, grad_out)
    assert np.array_equal(workers.forward_alone(params, x, level, label)[0], right)
    workers.stop()


def test_a_worker_that_has_ended_is_reported_and_the_next_call_starts_others():
    workers = Workers(mlp, 1, 4)
    params = mlp.init(np.random.default_rng(0))
    x, level = np.ones((6, 2), np.float32), np.zeros(6, np.float32)
    before = {child.pid for child in multiprocessing.active_children()}
    out, _ = workers.forward(params, x, level)
    (started,) = [c for c in multiprocessing.active_children() if c.pid not in before]
    started.kill()
    started.join()
    with pytest.raises(RuntimeError, match="a worker process has ended"):
        workers.forward(params, x, level)
    assert np.array_equal(workers.forward(params, x, level)[0], out)


def test_arrays_of_different_lengths_are_refused(two):
    params, x, _, _, label = batch(8)
    level = np.zeros(8, np.float32)
    # The surplus begins with a new piece of 4 rows, so no worker would see it.
    longer = np.zeros(12, np.float32), np.concatenate([label, label[:4]])
    for wrong in (level[:4], label), (longer[0], label), (level, longer[1]), (level, label[:4]):
        with pytest.raises(ValueError, match="equally many rows"):
            two.forward(params, x, *wrong)
    _, cache = two.forward(params, x, level, label)
    for rows in 4, 12:
        with pytest.raises(ValueError, match="grad_out must have 8 rows"):
            two.backward(params, cache, np.zeros((rows, 8, 8, 1), np.float32))
    assert two.backward(params, cache, x)[0].shape == x.shape  # the cache is still good


def test_what_is_not_a_module_is_refused():
    with pytest.raises(ValueError, match="must be a module"):
        fast.engine(types.SimpleNamespace(forward=mlp.forward))


SCRIPT = """
    import multiprocessing, os, time
    import numpy as np
    from npdiff import fast
    from npdiff.nn import mlp
    if __name__ == "__main__":
        net, _, _ = fast.engine(mlp, threads=2, rows=4)
        params = mlp.init(np.random.default_rng(0))
        net.forward(params, np.zeros((8, 2), np.float32), np.zeros(8, np.float32))
"""
WAIT = """
        try:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(1)  # long enough to hear what the workers say to it
"""
ENVIRONMENTS = """
        print(os.environ.get("OPENBLAS_NUM_THREADS", "none"))
        for child in multiprocessing.active_children():
            variables = open(f"/proc/{child.pid}/environ").read().split(chr(0))
            print("OPENBLAS_NUM_THREADS=1" in variables)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_silently_with_the_process_that_started_them(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT + WAIT))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, script], **pipes, env=environment, start_new_session=True
    ) as run:
        workers = [int(pid) for pid in run.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        if end == signal.SIGINT:  # Ctrl-C goes to all processes, a kill to one
            os.killpg(run.pid, end)
        else:
            os.kill(run.pid, end)
        message = run.communicate(timeout=20)[1].decode()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    assert message == ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_uses_one_thread_for_a_product_and_this_process_keeps_its_own_number(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT + ENVIRONMENTS))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("OPENBLAS_NUM_THREADS", None)
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["none", "True", "True"], run.stderr


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="about glibc's allocator"
)
def test_kept_memory_is_not_cleared_by_the_kernel_again():
    import resource

    keep_freed_memory()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        # 2,048 pages; without keep_freed_memory there are 40,960 page faults in all.
        arrays = [np.ones(1 << 20, np.uint8) for _ in range(8)]
        del arrays
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 10_000
