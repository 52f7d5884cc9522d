import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from conftest import (
    EPS,
    EPS_32,
    dtypes,
    preserving_schedules,
    schedules,
    seeds,
    shapes,
    times,
)
from hypothesis import given
from hypothesis import strategies as st

from npdiff.schedule import (
    At,
    Schedule,
    check_t,
    cosine,
    linear,
    uniform_log_snr,
    unit_variance,
    variance_preserving,
)

TABLES = ("signal", "noise", "alpha", "alpha_bar", "beta", "beta_tilde", "level", "std")


@given(schedules())
def test_schedule_tables_are_float64_of_length_T_plus_1_and_read_only(schedule):
    for name in TABLES:
        table = getattr(schedule, name)
        assert table.shape == (schedule.T + 1,) and table.dtype == np.float64, name
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1.0


@given(schedules())
def test_schedule_starts_at_the_data(schedule):
    assert schedule.signal[0] == 1 and schedule.noise[0] == 0
    assert schedule.alpha_bar[0] == 1 and schedule.beta[0] == 0
    assert schedule.beta_tilde[0] == 0 and schedule.beta_tilde[1] == 0
    assert schedule.level[0] == -math.inf


@given(schedules())
def test_schedule_loses_signal_to_noise_at_every_step(schedule):
    assert (np.diff(schedule.noise / np.maximum(schedule.signal, 1e-300)) > 0).all()
    assert (np.diff(schedule.level) > 0).all()
    assert (schedule.beta[1:] > 0).all()


@given(schedules())
def test_level_is_the_logarithm_of_noise_over_signal(schedule):
    seen = slice(1, -1 if schedule.signal[-1] == 0 else None)
    np.testing.assert_allclose(
        np.exp(schedule.level[seen]), schedule.noise[seen] / schedule.signal[seen], rtol=32 * EPS
    )
    assert schedule.signal[-1] > 0 or schedule.level[-1] == math.inf


@given(seeds, st.integers(1, 50))
def test_variance_preserving_follows_the_product_of_the_rates(seed, T):
    beta = np.random.default_rng(seed).uniform(0.01, 0.9, T)
    schedule, alpha_bar = variance_preserving(beta), 1.0
    for t in range(1, T + 1):
        beta_tilde = (1 - alpha_bar) / (1 - alpha_bar * (1 - beta[t - 1])) * beta[t - 1]
        alpha_bar *= 1 - beta[t - 1]
        assert schedule.alpha_bar[t] == pytest.approx(alpha_bar, rel=4 * EPS)
        # The tables of beta come back from 1 - alpha_bar, whose rounding is EPS / beta at the most:
        # see test_forward.
        assert schedule.beta[t] == pytest.approx(beta[t - 1], rel=16 * EPS / 0.01)
        assert schedule.alpha[t] == pytest.approx(1 - beta[t - 1], rel=16 * EPS)
        assert schedule.beta_tilde[t] == pytest.approx(beta_tilde, rel=16 * EPS / 0.01, abs=0)


@given(preserving_schedules())
def test_variance_preserving_keeps_unit_variance(schedule):
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1, rtol=4 * EPS)
    np.testing.assert_allclose(schedule.alpha + schedule.beta, 1, rtol=8 * EPS)


@given(schedules())
def test_beta_tilde_is_below_beta(schedule):
    assert (schedule.beta_tilde[1:] < schedule.beta[1:]).all()


@given(st.integers(2, 60), st.floats(1e-4, 0.05), st.floats(0.06, 0.9))
def test_linear_rises_in_equal_steps_between_its_ends(T, beta_1, beta_T):
    beta = linear(T, beta_1, beta_T).beta
    for t in range(1, T + 1):
        assert beta[t] == pytest.approx(beta_1 + (beta_T - beta_1) * (t - 1) / (T - 1), abs=8 * EPS)


def test_linear_with_its_defaults_is_the_schedule_of_Ho_et_al():
    schedule = linear()
    assert schedule.T == 1000
    assert schedule.beta[1] == pytest.approx(1e-4, rel=1e-10) and schedule.beta[
        1000
    ] == pytest.approx(0.02, rel=1e-12)
    assert schedule.signal[1000] == pytest.approx(0.0064, abs=5e-5)


def test_linear_leaves_much_signal_where_T_is_small():
    assert linear(50).alpha_bar[50] == pytest.approx(0.603, abs=5e-4)
    assert linear(200).alpha_bar[200] == pytest.approx(0.13, abs=5e-3)


@given(st.integers(2, 400), st.floats(0.001, 0.1))
def test_cosine_is_the_square_of_a_cosine_until_its_rate_is_clipped(T, s):
    schedule = cosine(T, s)
    f = [math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in range(T + 1)]
    for t in range(1, T):
        # Not clipped. Rounding of the angle, EPS, grows by 1/(pi/2 - angle) < 2T in its cosine.
        if f[t] / f[t - 1] > 1.002 * 0.001:
            assert schedule.alpha_bar[t] == pytest.approx(f[t] / f[0], rel=16 * T * EPS)
    assert schedule.beta.max() <= 0.999 * (1 + 16 * EPS)
    assert schedule.beta[T] == pytest.approx(0.999, rel=16 * EPS)
    assert schedule.alpha[T] == pytest.approx(0.001, rel=1e-12)


def test_cosine_with_its_defaults_is_the_schedule_of_Nichol_and_Dhariwal():
    schedule, start = cosine(), math.cos(math.pi / 2 * 0.008 / 1.008)
    assert schedule.T == 1000
    assert schedule.signal[500] == pytest.approx(
        math.cos(math.pi / 2 * 0.508 / 1.008) / start, rel=1e-12
    )
    assert schedule.signal[1000] == pytest.approx(4.9e-5, abs=5e-7)


def decimal_cos(x: Decimal) -> Decimal:
    term, total, k = Decimal(1), Decimal(1), 0
    while abs(term) > Decimal("1e-45"):
        k += 2
        term *= -x * x / (k * (k - 1))
        total += term
    return total


def decimal_rates(name: str, T: int) -> list[Decimal]:
    """beta_1 .. beta_T by their definitions, in the decimal context at hand."""
    if name == "linear":
        low, high = Decimal(1e-4), Decimal(0.02)
        return [low + (high - low) * t / (T - 1) for t in range(T)]
    pi, s = Decimal("3.14159265358979323846264338327950288419716939937511"), Decimal(0.008)
    f = [decimal_cos(pi / 2 * (Decimal(t) / T + s) / (1 + s)) ** 2 for t in range(T + 1)]
    return [min(1 - f[t] / f[t - 1], Decimal(0.999)) for t in range(1, T + 1)]


@pytest.mark.parametrize("make", [linear, cosine])
def test_tables_agree_with_40_digit_arithmetic(make):
    # 1 - alpha_bar_t is at least t beta_1 / 2 and the product of t factors is off by t EPS, so
    # noise^2, beta and beta_tilde are right to a few EPS / beta_1: 2e-12 for linear, 5e-12 for
    # cosine. Seen: 8e-13 and 5e-12.
    T, schedule = 1000, make(1000)
    with localcontext() as context:
        context.prec = 40
        alpha_bar, rates = Decimal(1), decimal_rates(make.__name__, T)
        rtol = 8 * EPS / float(rates[0])
        for t, beta in enumerate(rates, start=1):
            beta_tilde = (1 - alpha_bar) / (1 - alpha_bar * (1 - beta)) * beta
            alpha_bar *= 1 - beta
            exact = {
                "signal": alpha_bar.sqrt(),
                "noise": (1 - alpha_bar).sqrt(),
                "alpha": 1 - beta,
                "alpha_bar": alpha_bar,
                "beta": beta,
            }
            for name, value in {**exact, "beta_tilde": beta_tilde}.items():
                error = abs(Decimal(float(getattr(schedule, name)[t])) - value)
                assert error <= Decimal(rtol) * value, (name, t, float(error / value))


@pytest.mark.parametrize(
    ("signal", "noise", "message"),
    [
        ([1.0, 0.5], [0.0, 0.5, 0.7], "one shape"),
        ([1.0], [0.0], "T >= 1"),
        ([[1.0, 0.5]], [[0.0, 0.5]], "one shape"),
        ([0.9, 0.5], [0.0, 0.5], "starts at the data"),
        ([1.0, 0.5], [0.1, 0.5], "starts at the data"),
        ([1.0, -0.5], [0.0, 0.5], "not negative"),
        ([1.0, 0.5], [0.0, float("nan")], "finite"),
        ([1.0, 0.5, 0.5], [0.0, 0.5, 0.5], "rise"),
        ([1.0, 0.5, 0.9], [0.0, 0.5, 0.2], "rise"),
        ([1.0, 0.0, 0.0], [0.0, 0.5, 0.9], "rise"),
    ],
)
def test_schedule_refuses_tables_that_are_no_chain(signal, noise, message):
    with pytest.raises(ValueError, match=message):
        Schedule(np.array(signal), np.array(noise))


@pytest.mark.parametrize(
    "beta", [[0.1, 1.0], [0.0, 0.1], [0.1, -0.1], [[0.1]], [0.1, float("nan")], []]
)
def test_variance_preserving_refuses_rates_outside_0_to_1(beta):
    with pytest.raises(ValueError):
        variance_preserving(np.array(beta))


@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize("T", [0, -1, 10.0, "10", None])
def test_schedules_refuse_a_T_that_is_no_number_of_steps(make, T):
    with pytest.raises(ValueError, match="T must be a whole number"):
        make(T)


@given(schedules())
def test_check_t_takes_every_step_and_no_other(schedule):
    for t in (1, schedule.T, np.int64(1), np.arange(1, schedule.T + 1), np.array([], dtype=int)):
        check_t(t, schedule.T)
    for t in (0, -1, schedule.T + 1, np.array([1, 0]), np.array([schedule.T + 1, 1])):
        with pytest.raises(ValueError, match=rf"1\.\.{schedule.T}"):
            check_t(t, schedule.T)


@pytest.mark.parametrize(
    "t",
    [
        1.0,
        True,
        np.True_,
        np.float64(1),
        np.array([1.0]),
        np.array([True]),
        [1, 2],
        "1",
        None,
        np.ones((2, 1), int),
    ],
)
def test_check_t_refuses_what_is_no_integer(t):
    with pytest.raises(ValueError, match="t must be an int"):
        check_t(t, 10)


# The door: schedule.at(t, x)

PREVIOUS = {"signal_prev": "signal", "noise_prev": "noise"}


def entry(schedule, name, t):
    """What the field `name` of At stands for, from the table: at t, or at t - 1."""
    return getattr(schedule, PREVIOUS.get(name, name))[t - 1 if name in PREVIOUS else t]


def test_at_has_every_table_that_a_formula_needs_and_two_of_them_at_t_minus_1():
    assert set(At._fields) == {*TABLES, *PREVIOUS} - {"alpha_bar"}  # alpha_bar is signal^2


@given(schedules(), st.data())
def test_at_gives_the_tables_numbers_as_python_floats_for_one_t_to_the_bit(schedule, data):
    t, x = data.draw(times(schedule)), np.zeros((2, 3), np.float32)
    for one in (t, np.int64(t), np.array(t)):
        for name, number in schedule.at(one, x)._asdict().items():
            assert type(number) is float and number == entry(schedule, name, t), name


@given(schedules(), shapes, dtypes, seeds)
def test_at_gives_the_tables_numbers_rounded_to_xs_precision_for_a_batch(
    schedule, shape, dtype, seed
):
    rng = np.random.default_rng(seed)
    t, x = rng.integers(1, schedule.T + 1, shape[0]), rng.standard_normal(shape).astype(dtype)
    for name, numbers in schedule.at(t, x)._asdict().items():
        assert numbers.shape == (shape[0], *[1] * (len(shape) - 1)) and numbers.dtype == dtype
        expected = np.array([entry(schedule, name, i) for i in t]).astype(dtype)
        np.testing.assert_array_equal(numbers.ravel(), expected, err_msg=name)


def test_at_takes_an_empty_batch():
    s = linear(10).at(np.array([], int), np.zeros((0, 2), np.float32))
    assert {number.shape for number in s} == {(0, 1)}


def coefficients(s):
    """Every coefficient of a formula of forward.py and reverse.py, as the code writes it."""
    return {
        "sqrt(alpha)": s.alpha**0.5,
        "sqrt(beta)": s.beta**0.5,
        "beta / noise": s.beta / s.noise,
        "weight_x_0": s.signal_prev * s.beta / s.noise**2,
        "weight_x_t": s.alpha**0.5 * s.noise_prev**2 / s.noise**2,
        "noise / std": s.noise / s.std,
        "1 / (signal^2 + noise^2)": 1 / (s.signal**2 + s.noise**2),
    }


def float32_errors(schedule):
    """The largest relative error of each coefficient in float32, in units of EPS_32, over all t."""
    t = np.arange(1, schedule.T + 1)
    rough, fine = (coefficients(schedule.at(t, np.zeros(schedule.T, d))) for d in ("f", "d"))
    return {
        name: np.max(np.abs(rough[name] - fine[name]) / np.maximum(fine[name], 1e-300)) / EPS_32
        for name in fine
    }


@given(schedules())
def test_coefficients_of_a_float32_batch_are_right_to_a_few_roundings(schedule):
    # An operation rounds by EPS_32 / 2 at most, and so does each table as it is taken into float32.
    # A square doubles the error of its argument, a root halves it. The most roundings are those of
    # weight_x_t: 1.5 for the root, 3 for each square, 1 each for the product and the ratio; 9.5.
    assert max(float32_errors(schedule).values()) <= 9.5 / 2


@pytest.mark.parametrize("schedule", [linear(1000), cosine(1000)], ids=["linear", "cosine"])
def test_coefficients_of_the_papers_schedules_are_right_to_5_roundings_in_float32(schedule):
    errors = float32_errors(schedule)  # fixed numbers: this records how good they are
    assert max(errors.values()) <= 2.5, errors


@given(schedules())
def test_at_refuses_what_is_no_step(schedule):
    x = np.ones((3, 2))
    for t in (0, -1, schedule.T + 1, np.array([1, 0, 1]), np.array([1, 1, schedule.T + 1])):
        with pytest.raises(ValueError, match=rf"1\.\.{schedule.T}"):
            schedule.at(t, x)
    for t in (1.0, True, np.float64(1), np.ones(3), [1, 1, 1], "1", None, np.ones((3, 1), int)):
        with pytest.raises(ValueError, match="t must be an int"):
            schedule.at(t, x)


def test_at_refuses_a_batch_of_another_length_and_an_x_of_integers():
    for length in (0, 1, 2, 4):
        with pytest.raises(ValueError, match=f"t has {length} entries and x has 3 rows"):
            linear(10).at(np.ones(length, int), np.ones((3, 2)))
    for t in (1, np.ones(3, int)):
        with pytest.raises(ValueError, match="x must be an array of floats, got int64"):
            linear(10).at(t, np.ones((3, 2), np.int64))


@given(st.integers(2, 60), st.floats(-8, -3), st.floats(-2, 6))
def test_uniform_log_snr_has_levels_in_equal_steps_and_keeps_unit_variance(T, first, last):
    schedule = uniform_log_snr(T, first, last)
    levels = np.linspace(first, last, T)
    np.testing.assert_allclose(schedule.level[1:], levels, rtol=0, atol=64 * EPS)
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1, rtol=4 * EPS)


@given(schedules())
def test_at_unit_variance_the_levels_stay_and_the_variance_is_preserved(schedule):
    scaled = unit_variance(schedule)
    np.testing.assert_allclose(scaled.signal**2 + scaled.noise**2, 1, rtol=8 * EPS)
    # A level is the difference of two logarithms; their arguments are rounded, and so are they.
    logs = np.log([table[table > 0] for table in (scaled.noise, schedule.noise)])
    largest = max(np.abs(logs).max(), np.abs(schedule.level[np.isfinite(schedule.level)]).max())
    np.testing.assert_allclose(scaled.level, schedule.level, rtol=0, atol=8 * EPS * (1 + largest))
