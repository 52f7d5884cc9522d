"""The t of a picture: their levels lie in equal steps, where data are seen to dissolve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import levels
from npdiff.papers import ncsn
from npdiff.schedule import cosine, linear, uniform_log_snr

SCHEDULES = {
    "linear": linear(1000),
    "cosine": cosine(1000),
    "uniform in log-SNR": uniform_log_snr(300),
    "variance exploding": ncsn.ladder(200, 0.01, 50.0),
}


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 60))
def test_the_levels_of_the_chosen_t_lie_in_equal_steps(name, n):
    schedule = SCHEDULES[name]
    first, *between, last = levels.spaced_by_level(schedule, n)
    assert first == 0 and last == schedule.T and between == sorted(set(between))
    low, high = levels.SEEN
    wanted = low + np.arange(1, n + 1) * (high - low) / (n + 1)
    # Each is the t nearest to a wanted level: off by half a step of the schedule at most.
    for level in wanted:
        t = min(between, key=lambda t: abs(schedule.level[t] - level))
        assert abs(schedule.level[t] - level) <= np.diff(schedule.level[t - 1 : t + 2]).max() / 2
    assert len(between) <= n


def test_evenly_spaced_t_would_show_mostly_noise():
    """Of five t in equal steps on the linear schedule, three have more noise than signal."""
    schedule = SCHEDULES["linear"]
    assert (schedule.level[[500, 750, 1000]] > np.log(3)).all()
    ts = levels.spaced_by_level(schedule, 3)
    assert len(ts) == 5 and (schedule.level[ts[1:-1]] < 0).all()


@pytest.mark.parametrize("T", [1, 2, 5, 20])
def test_a_short_schedule_has_each_of_its_t_once_at_most(T):
    """Its x_T still holds much of x_0, so its levels cover a part of SEEN only."""
    ts = levels.spaced_by_level(linear(T), 58)
    assert ts == sorted(set(ts)) and ts[0] == 0 and ts[-1] == T
    assert len(ts) <= T + 1


def test_of_a_schedule_that_covers_a_part_of_what_is_seen_that_part_is_cut_into_equal_steps():
    schedule = uniform_log_snr(1001, -1.0, 0.0)
    ts = levels.spaced_by_level(schedule, 3)
    np.testing.assert_allclose(schedule.level[ts[1:]], [-0.75, -0.5, -0.25, 0.0], atol=5e-4 + 1e-9)
