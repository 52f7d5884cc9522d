"""What the tests share: Hypothesis profiles, and strategies for schedules, times and arrays.

Hypothesis draws a shape, a seed, a step, a schedule; the values come from a generator with that
seed. With the environment variable CI set every run draws the same examples.
"""

import os

# Read when NumPy is first imported. Products as small as the tests' are faster on one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st

from npdiff.backend import BackendError, select
from npdiff.nn import conv, mlp, ops
from npdiff.nn.params import pack
from npdiff.schedule import Schedule, cosine, linear, variance_preserving

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40, print_blob=True)
settings.register_profile("dev", deadline=None, max_examples=40)
settings.register_profile(
    "slips", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# 2.2e-16, twice the largest relative error of one operation in float64.
EPS = float(np.finfo(np.float64).eps)
EPS_32 = float(np.finfo(np.float32).eps)

# A Monte Carlo figure may differ from its expectation by 5 standard errors. A normal variable does
# so once in 1.7 million.
STANDARD_ERRORS = 5.0

seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
dtypes = st.sampled_from([np.float32, np.float64])


def normal_values(seed: int, *shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def variance_exploding(T: int, lowest: float = 0.01, highest: float = 50.0) -> Schedule:
    """signal 1; noise in equal ratios from `lowest` to `highest`."""
    return Schedule(np.ones(T + 1), np.concatenate([[0.0], np.geomspace(lowest, highest, T)]))


def flow_matching(T: int) -> Schedule:
    """signal 1 - t/T and noise t/T: at T no signal is left."""
    u = np.arange(T + 1) / T
    return Schedule(1 - u, u)


def random_rates(T: int, seed: int) -> Schedule:
    return variance_preserving(np.random.default_rng(seed).uniform(1e-4, 0.5, T))


@st.composite
def preserving_schedules(draw: st.DrawFn, max_T: int = 40) -> Schedule:
    """Variance-preserving schedules: linear, cosine, random rates."""
    T = draw(st.integers(1, max_T))
    kind = draw(st.sampled_from(["linear", "cosine", "random"]))
    if kind == "linear":
        return linear(T, draw(st.floats(1e-4, 0.05)), draw(st.floats(0.05, 0.9)))
    return cosine(T) if kind == "cosine" else random_rates(T, draw(seeds))


@st.composite
def schedules(draw: st.DrawFn, max_T: int = 40) -> Schedule:
    """Every kind of schedule, variance preserving or not; a fifth of them end without signal."""
    kind = draw(st.sampled_from(["preserving", "preserving", "preserving", "exploding", "flow"]))
    if kind == "preserving":
        return draw(preserving_schedules(max_T))
    T = draw(st.integers(2, max_T))
    return variance_exploding(T) if kind == "exploding" else flow_matching(T)


def times(schedule: Schedule, with_signal: bool = False) -> st.SearchStrategy[int]:
    """t in 1..T, or only those at which x_t still holds something of x_0."""
    return st.integers(
        1, schedule.T - 1 if with_signal and schedule.signal[-1] == 0 else schedule.T
    )


@st.composite
def schedules_and_times(
    draw: st.DrawFn, with_signal: bool = False, max_T: int = 40
) -> tuple[Schedule, int]:
    schedule = draw(schedules(max_T))
    return schedule, draw(times(schedule, with_signal))


def assert_within_standard_errors(
    samples: np.ndarray, expected: float | np.ndarray, axis: int = 0
) -> None:
    """The mean of independent samples lies within STANDARD_ERRORS of what is expected."""
    standard_error = samples.std(axis=axis, ddof=1) / np.sqrt(samples.shape[axis])
    deviation = np.abs(samples.mean(axis=axis) - expected) / standard_error
    assert np.all(deviation < STANDARD_ERRORS), f"{np.max(deviation):.1f} standard errors"


def assert_a_walk(steps: list, x_T: np.ndarray, schedule: Schedule) -> None:
    """The Steps of a sampler lead from T to 0, one at a time, each from where the last one ended.

    In each, x_prev = mean + sigma z, where z is 0 just where sigma is; and eps_hat and x_0_hat are
    the two parts of x_t.
    """
    assert [step.t_prev for step in steps if step.t != step.t_prev] == [*range(schedule.T)][::-1]
    t, x_t = schedule.T, x_T
    for step in steps:
        assert step.t == t and step.t_prev in (t, t - 1)
        np.testing.assert_array_equal(step.x_t, x_t)
        np.testing.assert_array_equal(step.x_prev, step.mean + step.sigma * step.z)
        np.testing.assert_array_equal(step.z != 0, np.broadcast_to(step.sigma, step.z.shape) > 0)
        signal_x_0_hat = schedule.signal[t] * step.x_0_hat
        noise_eps_hat = schedule.noise[t] * step.eps_hat
        largest = np.abs(x_t).max() + np.abs(noise_eps_hat).max()
        np.testing.assert_allclose(
            signal_x_0_hat + noise_eps_hat, x_t, rtol=0, atol=16 * EPS * largest
        )
        t, x_t = step.t_prev, step.x_prev


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


def random_mlp(rng: np.random.Generator, **sizes: int) -> tuple[np.ndarray, dict]:
    """theta of a small MLP in float64, every leaf random, and a tree of its shapes."""
    theta, like = pack(mlp.init(rng, **{"hidden": 8, "layers": 1, **sizes}))
    return theta.astype(np.float64) + 0.3 * rng.standard_normal(theta.size), like


def sign_turned(params: dict) -> dict:
    """The parameters of a network that puts out the opposite of what these do."""
    return {**params, "last": {name: -leaf for name, leaf in params["last"].items()}}


class RecordedOps:
    """The ops of a module, each recorded by name in `calls` when it is called.

    `strays` runs a function and returns its result, and the names of those ops of npdiff.nn that it
    entered by another way than through this object.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.calls, self.depth = module, [], 0

    def __getattr__(self, name: str) -> Callable:
        op = getattr(self.module, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self.depth += 1
            try:
                return op(*args, **kwargs)
            finally:
                self.depth -= 1

        return recorded

    def strays(self, f: Callable, *args: Any) -> tuple[Any, list[str]]:
        plain = {
            op.__code__: name
            for module in (ops, conv)
            for name, op in vars(module).items()
            if name.endswith(("_forward", "_backward", "_waves"))
        }
        entered = []

        def look(frame: FrameType, event: str, arg: Any) -> None:
            if event == "call" and frame.f_code in plain and not self.depth:
                entered.append(plain[frame.f_code])

        sys.setprofile(look)
        try:
            result = f(*args)
        finally:
            sys.setprofile(None)
        return result, entered


def cupy_or_skip():
    """CuPy, for a module of tests that needs it; the module is skipped where there is no GPU."""
    with warnings.catch_warnings():
        # Of a kernel's compiler, not of the package.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return select("cupy")
        except BackendError as error:
            pytest.skip(str(error), allow_module_level=True)
