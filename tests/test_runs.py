"""Runs that meet one another, or bad luck: nothing is lost, and every end takes one line."""

import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import swiss_roll
from lab import checkpoint, cli, files, progress, run_folder
from lab.errors import UserError
from npdiff.fast.workers import WorkerEnded, Workers
from npdiff.nn import mlp
from npdiff.train import TrainStep, start, update

ROOT = Path(__file__).parents[1]
DEMOS = ROOT / "demos"
ALL_DEMOS = sorted(path.stem for path in DEMOS.glob("*.py"))
SMALL = ["--smoke", "--no-gif"]
ENDLESS = [*SMALL, "--steps", 10**8]
NEEDS_PROC = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def command(demo, *flags):
    return [sys.executable, str(DEMOS / f"{demo}.py"), *map(str, flags)]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **more}


def run(demo, *flags, cwd, **more):
    settings = dict(env=environment(), capture_output=True, text=True, timeout=120)
    return subprocess.run(command(demo, *flags), cwd=cwd, **(settings | more))


def well(demo, *flags, cwd):
    """What a run prints that ends well."""
    done = run(demo, *flags, cwd=cwd)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def refused(demo, *flags, cwd, **more):
    """The one line of a run that is refused before it prints anything."""
    done = run(demo, *flags, cwd=cwd, **more)
    assert done.returncode in (1, 2) and not done.stdout, done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{demo}.py: "), done.stderr
    return done.stderr


def begin(demo, *flags, cwd, **more):
    settings = dict(env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command(demo, *flags), cwd=cwd, **(settings | more))


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_training(demo, *flags, cwd, **more):
    """A run into cwd/o that has written a checkpoint."""
    process = begin(demo, *flags, "--out", "o", cwd=cwd, **more)
    wait_for((cwd / "o" / "checkpoint.npz").exists, process)
    return process


def killed(process):
    process.kill()
    process.communicate()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


# Nothing lost: the folder of a run


def test_an_unfinished_run_is_replaced_by_overwrite_alone(tmp_path):
    killed(in_training("swiss_roll", *ENDLESS, cwd=tmp_path))
    before = contents(tmp_path / "o")
    line = refused("swiss_roll", *SMALL, "--out", "o", cwd=tmp_path)
    assert "unfinished" in line and "--resume" in line and "--overwrite" in line
    assert contents(tmp_path / "o") == before
    for flag in "--resume", "--sample-only":
        assert "starts anew" in refused(
            "swiss_roll", flag, "--overwrite", "--out", "o", cwd=tmp_path
        )
    well("swiss_roll", *SMALL, "--steps", 5, "--overwrite", "--out", "o", cwd=tmp_path)
    assert checkpoint.read_settings(tmp_path / "o" / "checkpoint.npz")["steps"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_a_run_that_was_sampled_before_its_end_is_unfinished(tmp_path):
    killed(in_training("swiss_roll", *ENDLESS, cwd=tmp_path))
    well("swiss_roll", "--sample-only", "--out", "o", cwd=tmp_path)
    assert "unfinished" in refused("swiss_roll", *SMALL, "--out", "o", cwd=tmp_path)


def test_a_finished_run_is_moved_aside_with_its_files_alone(tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "older.png").write_text("a picture of the user's")
    os.utime(tmp_path / "o" / "older.png", (0, 0))
    for seed in 1, 2, 3:
        output = well("swiss_roll", "--smoke", "--seed", seed, "--out", "o", cwd=tmp_path)
        moved = "the finished run in o was moved to o.previous"
        assert (moved in output) == (seed > 1)
        (tmp_path / "o" / "mine.txt").write_text("a file of the user's")
    seeds = {
        path.name: json.loads((path / "metrics.json").read_text())["settings"]["seed"]
        for path in tmp_path.iterdir()
    }
    assert seeds == {"o": 3, "o.previous": 1, "o.previous-2": 2}
    assert {"mine.txt", "older.png"} <= {path.name for path in (tmp_path / "o").iterdir()}
    aside = {path.name for path in (tmp_path / "o.previous").iterdir()}
    assert aside == set(contents(tmp_path / "o")) - {"mine.txt", "older.png"} | {"run.json"}


def test_a_folder_of_another_demo_is_refused(tmp_path):
    well("three_papers", "--smoke", "--out", "o", cwd=tmp_path)
    before = contents(tmp_path / "o")
    for flags in ["--smoke"], ["--smoke", "--overwrite"]:
        line = refused("samplers", *flags, "--out", "o", cwd=tmp_path)
        assert "holds a run of three_papers.py" in line
    assert contents(tmp_path / "o") == before


def test_a_second_run_at_the_same_time_is_refused_and_a_lock_dies_with_its_run(tmp_path):
    first = in_training("swiss_roll", *ENDLESS, cwd=tmp_path)
    for flags in SMALL, ["--resume"], ["--sample-only"], ["--overwrite"]:
        line = refused("swiss_roll", *flags, "--out", "o", cwd=tmp_path)
        assert f"another run uses it (process {first.pid} on " in line
    killed(first)
    well("swiss_roll", "--sample-only", "--out", "o", cwd=tmp_path)


def claim(folder, demo="mnist", goes_on=False, overwrite=False):
    return run_folder.claim(folder, demo, goes_on, overwrite)


def test_a_lock_holds_as_long_as_its_file_is_open(tmp_path):
    marker = claim(tmp_path)
    with pytest.raises(UserError, match="another run uses it"):
        claim(tmp_path, goes_on=True)
    marker.close()
    claim(tmp_path, goes_on=True).close()


def test_samples_of_shipped_weights_are_moved_aside_by_a_training(tmp_path):
    folder = tmp_path / "o"
    claim(folder, goes_on=True).close()
    (folder / "metrics.json").write_text("{}")
    claim(folder, goes_on=True).close()
    assert (folder / "metrics.json").exists()
    claim(folder).close()
    assert not (folder / "metrics.json").exists()
    assert {path.name for path in (tmp_path / "o.previous").iterdir()} == {
        "metrics.json",
        "run.json",
    }


@pytest.mark.parametrize("marker", ["", "{", "[1]", '{"demo": "mnist"}'])
def test_a_marker_of_a_killed_run_is_no_obstacle(tmp_path, marker):
    (tmp_path / "run.json").write_text(marker)
    claim(tmp_path).close()
    assert json.loads((tmp_path / "run.json").read_text())["demo"] == "mnist"


def test_a_marker_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match="not a file"):
        claim(tmp_path)


# No silent ruin: training that diverges


KEEP = checkpoint.keep


def main_of_the_roll(flags, poison, monkeypatch):
    """Run swiss_roll.py here, with an update that puts NaN into theta at the step `poison`."""

    def poisoned(state, grad, steps, **settings):
        update(state, grad, steps, **settings)
        if state.step == poison:
            state.theta[0] = np.nan

    monkeypatch.setattr(swiss_roll, "update", poisoned)
    monkeypatch.setattr(sys, "argv", ["swiss_roll.py", *map(str, flags)])
    monkeypatch.setattr(checkpoint, "keep", partial(KEEP, seconds=0.0))
    parse = lambda: swiss_roll.points_flags.parse("The roll.")  # noqa: E731
    with pytest.raises(SystemExit) as ended:
        cli.run(swiss_roll.main, parse)
    return ended.value.code


def test_training_that_diverges_ends_in_one_line_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, capsys
):
    kept = tmp_path / "o" / "checkpoint.npz"
    flags = [*SMALL, "--steps", 1000, "--out", tmp_path / "o"]
    for given, poison in ((flags, 30), (["--resume", "--out", tmp_path / "o"], 40)):
        assert main_of_the_roll(given, poison, monkeypatch) == 1
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "training diverged" in line and "--lr" in line
        with np.load(kept) as file:
            assert file["step"] == poison - 1 and np.isfinite(file["theta"]).all()
        assert not (tmp_path / "o" / "metrics.json").exists()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_not_finite_is_not_shown():
    nothing = dict(x_0=None, t=None, eps=None, losses=None, grad=None)
    steps = [TrainStep(step=i, loss=np.float32(np.nan), **nothing) for i in (1, 2)]
    with pytest.raises(UserError, match="diverged before step 2: the loss is not finite"):
        list(progress.training(steps, 0, 2, batch=2))


@pytest.mark.parametrize("name", checkpoint.VECTORS)
def test_numbers_that_are_not_finite_do_not_replace_a_checkpoint(tmp_path, name):
    state, rng = start(mlp.init(np.random.default_rng(0))), np.random.default_rng(1)
    checkpoint.save(tmp_path / "c.npz", state, rng, {})
    before = (tmp_path / "c.npz").read_bytes()
    getattr(state, name)[5] = np.inf
    with pytest.raises(UserError, match="diverged"):
        checkpoint.save(tmp_path / "c.npz", state, rng, {})
    assert (tmp_path / "c.npz").read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -2e30])
def test_absurd_samples_are_refused(value):
    cli.check_samples(np.array([[1e5, 0.0]]))
    with pytest.raises(UserError, match="diverged"):
        cli.check_samples(np.array([[0.0, value]]))


def test_metrics_are_json_whatever_they_hold(tmp_path):
    nan, inf = float("nan"), np.float64("inf")
    metrics = {"a": nan, "b": [{"c": inf}, (1.5, nan)], "d": "NaN", "e": {"f": 2}}
    cli.write_metrics(tmp_path / "m.json", metrics)
    refuse = lambda name: pytest.fail(name)  # noqa: E731
    read = json.loads((tmp_path / "m.json").read_text(), parse_constant=refuse)
    assert read == {"a": None, "b": [{"c": None}, [1.5, None]], "d": "NaN", "e": {"f": 2}}


# Workers that are killed, or stopped, or too many


def children(pid):
    """The processes that this one started, its resource tracker aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command_line = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in command_line:
            found.append(int(path.parent.name))
    return sorted(found)


MNIST = ["--smoke", "--steps", 10**6, "--no-gif", "--threads", 1]


@NEEDS_PROC
def test_a_killed_worker_is_one_line_with_the_way_to_continue(tmp_path):
    process = in_training("mnist", *MNIST, cwd=tmp_path)
    wait_for(lambda: children(process.pid), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and stderr.count("\n") == 1, stderr
    assert stderr.startswith("mnist.py: a worker process has ended: signal 9 killed it")
    assert "mnist.py --resume --out o" in stderr


def mlp_batch(rows=6):
    return mlp.init(np.random.default_rng(0)), np.ones((rows, 2), np.float32), np.zeros(rows, "f4")


@NEEDS_PROC
def test_a_stopped_worker_is_named_and_waited_for(capfd):
    workers, batch = Workers(mlp, 2, 4), mlp_batch()
    workers.patience = 60.0  # until the processes have started
    out, _ = workers.forward(*batch)
    workers.patience = 0.2
    pid = workers.processes[1].pid
    os.kill(pid, signal.SIGSTOP)
    with subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {pid}"]):
        assert np.array_equal(workers.forward(*batch)[0], out)
    said = capfd.readouterr().err
    assert said == f"waiting for worker process {pid}: no answer for 0.2 s\n"
    os.kill(pid, signal.SIGSTOP)
    stopped = workers.processes[1]
    workers.stop()
    stopped.join(10)
    assert stopped.exitcode == -signal.SIGKILL


@NEEDS_PROC
def test_a_stopped_worker_is_named_where_it_does_not_read_either(capfd):
    """More bytes than a pipe holds: this process waits while it sends."""
    workers, batch = Workers(mlp, 1, 2**20), mlp_batch()
    workers.forward(*batch)
    pid, large = workers.processes[0].pid, mlp_batch(2**18)
    workers.patience = 0.2
    os.kill(pid, signal.SIGSTOP)
    killing = ["sh", "-c", f"sleep 1; kill -KILL {pid}"]
    with subprocess.Popen(killing), pytest.raises(WorkerEnded, match="signal 9"):
        workers.forward_alone(*large)
    assert f"waiting for worker process {pid}" in capfd.readouterr().err


def test_no_more_processes_start_than_there_are_pieces():
    workers, few, more = Workers(mlp, 1000, 4), mlp_batch(6), mlp_batch(12)
    out, cache = workers.forward(*few)
    assert len(workers.processes) == 2
    alone, _ = workers.forward_alone(*more)  # a third one starts
    assert len(workers.processes) == 3 and np.array_equal(alone[:6], out)
    grad_x, _ = workers.backward(few[0], cache, out)  # the caches are where they were
    plain_out, plain_cache = mlp.forward(*few)
    np.testing.assert_allclose(grad_x, mlp.backward(few[0], plain_cache, plain_out)[0], rtol=1e-5)
    workers.stop()


def test_the_flag_threads_is_capped_at_the_cores():
    assert cli.processes("1000") == cli.processes(str(10**9)) == cli.cores()
    assert cli.processes("1") == 1


# One line at the end: Ctrl-C


@pytest.fixture
def slow_numpy(tmp_path):
    """An environment in which importing NumPy takes very long."""
    (tmp_path / "slow" / "numpy").mkdir(parents=True)
    source = 'import time\nopen("importing", "w").close()\ntime.sleep(60)\n'
    (tmp_path / "slow" / "numpy" / "__init__.py").write_text(source)
    return environment(PYTHONPATH=str(tmp_path / "slow"))


@pytest.mark.parametrize("demo", ALL_DEMOS)
def test_ctrl_c_while_numpy_is_imported_is_one_line(tmp_path, slow_numpy, demo):
    process = begin(demo, cwd=tmp_path, env=slow_numpy)
    wait_for((tmp_path / "importing").exists, process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "stopped\n" and process.returncode == 130


@pytest.mark.parametrize("pause", [0.0, 0.001, 0.01, 0.1])
def test_ctrl_c_twice_in_a_row_is_one_line(tmp_path, pause):
    process = in_training("swiss_roll", *ENDLESS, cwd=tmp_path)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    stderr = process.communicate(timeout=20)[1]
    # The second one may meet an interpreter that has shut down, and end it as it ends others.
    assert process.returncode in (130, -signal.SIGINT) and stderr.count("\n") == 1, stderr
    assert stderr.startswith("stopped")


@NEEDS_PROC
@pytest.mark.parametrize("pause", [0.0, 0.05, 0.2])
def test_ctrl_c_while_the_workers_start_is_one_line(tmp_path, pause):
    """Ctrl-C reaches the workers too, which are importing NumPy then."""
    process = begin("mnist", *MNIST, "--out", "o", cwd=tmp_path, start_new_session=True)
    wait_for(lambda: children(process.pid), process)
    time.sleep(pause)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and stderr.count("\n") == 1, stderr
    assert stderr.startswith("stopped; to continue: ") and stderr.endswith(" --resume --out o\n")


# One line at the end: stdout, and bad names


@pytest.mark.parametrize("demo", ["swiss_roll", "mnist", "benchmark", "first_steps"])
def test_a_closed_stdout_is_refused(tmp_path, demo):
    flags = [] if demo == "first_steps" else ["--smoke"]
    closing = ["sh", "-c", 'exec "$@" >&-', "sh", *command(demo, *flags)]
    done = subprocess.run(
        closing, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith(f"{demo}.py: stdout is closed")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--help"], ["--smoke", "--out", "o"]])
def test_a_pipe_that_nobody_reads_ends_a_run_silently(tmp_path, flags):
    ours, theirs = os.pipe()
    os.close(ours)
    process = begin("swiss_roll", *flags, cwd=tmp_path, stdout=theirs)
    os.close(theirs)
    assert process.communicate(timeout=60)[1] == "" and process.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        process = begin("swiss_roll", "--smoke", "--out", "o", cwd=tmp_path, stdout=full)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and stderr.count("\n") == 1 and "No space left" in stderr


def test_names_that_stdout_cannot_spell_are_escaped(tmp_path):
    for encoding, name in (("ascii", "gr\xf6\xdfe \u03c3"), ("utf-8", "\udcff")):
        env = environment(PYTHONIOENCODING=encoding)
        flags = ["--smoke", "--no-gif", "--out", name]
        done = run("swiss_roll", *flags, cwd=tmp_path, env=env, text=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert (tmp_path / name / "metrics.json").exists()


def test_the_first_steps_end_silently_where_their_first_line_is_enough(tmp_path):
    with begin("first_steps", cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith("step  100")
        process.stdout.close()
        assert process.wait(60) == -signal.SIGPIPE and process.stderr.read() == ""


def test_the_first_steps_are_told_apart_from_a_run_with_flags(tmp_path):
    assert "A whole diffusion model, flat" in well("first_steps", "--help", cwd=tmp_path)
    assert "takes no flags, got --smoke" in refused("first_steps", "--smoke", cwd=tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").write_text("a file")
    assert "out: File exists" in refused("first_steps", cwd=tmp_path)


@pytest.mark.parametrize("demo", ["swiss_roll", "mnist"])
def test_the_likelihood_of_one_step_is_refused_before_training(tmp_path, demo):
    line = refused(demo, "--smoke", "--T", 1, "--likelihood", "--out", "o", cwd=tmp_path)
    assert "--likelihood needs at least 2 steps" in line and not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", [".", "no/rows.json"])
def test_the_benchmark_refuses_a_file_that_cannot_be_written(tmp_path, name):
    assert "--json" in refused("benchmark", "--json", name, cwd=tmp_path)


# Temporary files


def temporary(folder):
    return [path.name for path in folder.iterdir() if path.suffix == ".tmp"]


def test_a_temporary_file_has_a_random_name_and_the_users_permissions(tmp_path):
    names, umask = set(), os.umask(0o027)
    try:
        for _ in range(2):
            with files.in_one_move(tmp_path / "x.txt") as path:
                names.add(path.name)
                path.write_text("new")
    finally:
        os.umask(umask)
    assert len(names) == 2 and all(map(files.TEMPORARY.fullmatch, names))
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o640


def test_a_prepared_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "victim").write_text("old")
    (tmp_path / f".x.txt.{'0' * 16}.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "victim").read_text() == "old" and not (tmp_path / "x.txt").exists()


KILLED_WHILE_IT_WRITES = """
    import os, signal, sys
    from pathlib import Path
    from lab import files
    with files.in_one_move(Path(sys.argv[1])) as path:
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_a_temporary_file(path):
    program = textwrap.dedent(KILLED_WHILE_IT_WRITES)
    env = environment(PYTHONPATH=f"{DEMOS}{os.pathsep}{ROOT}")
    done = subprocess.run([sys.executable, "-c", program, str(path)], env=env)
    assert done.returncode == -signal.SIGKILL


def test_the_temporary_files_of_a_killed_run_are_removed_by_the_next(tmp_path):
    (tmp_path / ".notes.tmp").write_text("a file of the user's")
    leave_a_temporary_file(tmp_path / "checkpoint.npz")
    assert len(temporary(tmp_path)) == 2
    claim(tmp_path).close()
    assert temporary(tmp_path) == [".notes.tmp"]


def test_outside_the_folder_of_a_run_they_are_removed_after_an_hour(tmp_path):
    for name in "old", "new":
        leave_a_temporary_file(tmp_path / name)
    ages = {name: name.startswith(".old") for name in temporary(tmp_path)}
    for name in (name for name, is_old in ages.items() if is_old):
        os.utime(tmp_path / name, (0, time.time() - 3700))
    files.write_text(tmp_path / "x.txt", "whole")
    assert temporary(tmp_path) == [name for name, is_old in ages.items() if not is_old]
