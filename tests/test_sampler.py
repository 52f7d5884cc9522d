import numpy as np
import pytest
from conftest import (
    EPS,
    STANDARD_ERRORS,
    dtypes,
    flow_matching,
    normal_values,
    preserving_schedules,
    random_rates,
    seeds,
    variance_exploding,
)
from hypothesis import given

from npdiff.exact import Gaussian
from npdiff.forward import eps_from_x_0, q_posterior, x_0_from_eps
from npdiff.reverse import p_mean_from_eps
from npdiff.sampler import ddim, ddpm, subsequence
from npdiff.schedule import Schedule, cosine, linear

SCHEDULES = {
    "linear": linear(40, 1e-3, 0.3),
    "cosine": cosine(40),
    "random rates": random_rates(30, 0),
    "variance exploding": variance_exploding(30),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def centred(s):
    return Gaussian([0.0], [[s**2]])


def variances(s, schedule):
    """v_t of x_t for N(0, s^2) data, t = 0..T."""
    return schedule.signal**2 * s**2 + schedule.noise**2


def samplers(predict_eps, x_T, schedule, seed=0):
    yield "ddpm, beta_tilde", ddpm(predict_eps, x_T, schedule, np.random.default_rng(seed))
    yield (
        "ddpm, beta",
        ddpm(predict_eps, x_T, schedule, np.random.default_rng(seed), variance="beta"),
    )
    for steps in (1, 2, 7, schedule.T):
        yield f"ddim, {steps} steps", ddim(predict_eps, x_T, schedule, steps)
        yield (
            f"ddim, {steps} steps, eta 0.5",
            ddim(predict_eps, x_T, schedule, steps, 0.5, np.random.default_rng(seed)),
        )


# What is yielded


@every_schedule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_step_is_its_mean_plus_sigma_z_and_the_walk_leads_from_T_to_0(schedule, dtype):
    predict_eps = centred(0.5).predictor(schedule)
    x_T = (schedule.noise[-1] * normal_values(0, 6, 1)).astype(dtype)
    for name, sampler in samplers(predict_eps, x_T, schedule):
        x_t, t = x_T, schedule.T
        for step in sampler:
            assert step.t == t and step.x_t is x_t, name
            assert 0 <= step.t_prev < step.t, name
            assert type(step.sigma) is float
            assert {
                step.eps_hat.dtype,
                step.x_0_hat.dtype,
                step.mean.dtype,
                step.z.dtype,
                step.x_prev.dtype,
            } == {np.dtype(dtype)}, name
            np.testing.assert_array_equal(step.x_prev, step.mean + step.sigma * step.z)
            np.testing.assert_array_equal(step.eps_hat, predict_eps(x_t, t))
            np.testing.assert_array_equal(
                step.x_0_hat, x_0_from_eps(x_t, t, step.eps_hat, schedule)
            )
            assert (step.sigma > 0) == bool(np.abs(step.z).min() > 0), name
            x_t, t = step.x_prev, step.t_prev
        assert t == 0, name
        assert step.sigma == 0 and not step.z.any(), name  # the last step adds no noise


@every_schedule
def test_the_last_step_ends_at_the_guess_of_x_0(schedule):
    x_T = schedule.noise[-1] * normal_values(0, 6, 1)
    for name, sampler in samplers(centred(0.5).predictor(schedule), x_T, schedule):
        *_, last = sampler
        np.testing.assert_allclose(
            last.x_prev, last.x_0_hat, rtol=64 * EPS, atol=64 * EPS, err_msg=name
        )


@given(preserving_schedules(), dtypes, seeds)
def test_x_T_is_left_as_it_was_and_a_seed_repeats_the_walk(schedule, dtype, seed):
    x_T = normal_values(seed, 3, 1, dtype=dtype)
    kept, predict_eps = x_T.copy(), centred(0.7).predictor(schedule)
    walks = zip(
        samplers(predict_eps, x_T, schedule, seed),
        samplers(predict_eps, x_T, schedule, seed),
        strict=True,
    )
    for (name, one), (_, two) in walks if schedule.T >= 7 else ():
        for step_one, step_two in zip(one, two, strict=True):
            np.testing.assert_array_equal(step_one.x_prev, step_two.x_prev, err_msg=name)
    np.testing.assert_array_equal(x_T, kept)


# DDPM


@every_schedule
@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_ddpm_takes_the_steps_of_p_theta(schedule, variance):
    x_T = schedule.noise[-1] * normal_values(0, 4, 1)
    for step in ddpm(
        centred(0.5).predictor(schedule), x_T, schedule, np.random.default_rng(0), variance
    ):
        assert step.t_prev == step.t - 1
        np.testing.assert_array_equal(
            step.mean, p_mean_from_eps(step.x_t, step.t, step.eps_hat, schedule)
        )
        table = schedule.beta if variance == "beta" else schedule.beta_tilde
        assert step.sigma == pytest.approx(
            np.sqrt(table[step.t]) if step.t > 1 else 0, rel=4 * EPS, abs=0
        )


@every_schedule
@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_ddpm_with_the_exact_predictor_and_the_true_variance_walks_the_marginals(schedule, s):
    # The predictor is linear in x, so a probe x_T = 1 gives the multiplier of each step: v <-
    # multiplier^2 v + variance.
    v = variances(s, schedule)
    for step in ddpm(
        centred(s).predictor(schedule), np.ones((1, 1)), schedule, np.random.default_rng(0)
    ):
        t, multiplier = step.t, (step.mean / step.x_t).item()
        assert multiplier**2 * v[t] + schedule.beta[t] * v[t - 1] / v[t] == pytest.approx(
            v[t - 1], rel=256 * EPS
        )


@pytest.mark.parametrize("schedule", [SCHEDULES["linear"], SCHEDULES["cosine"]])
def test_ddpm_with_beta_keeps_unit_variance_exactly(schedule):
    walked = 1.0
    for step in ddpm(
        centred(1.0).predictor(schedule),
        np.ones((1, 1)),
        schedule,
        np.random.default_rng(0),
        "beta",
    ):
        walked = (step.mean / step.x_t).item() ** 2 * walked + step.sigma**2
        # No noise at the last step.
        assert walked == pytest.approx(1.0 if step.t > 1 else schedule.alpha[1], rel=512 * EPS)


@every_schedule
def test_ddpm_with_beta_tilde_is_exact_for_a_single_point(schedule):
    def predict_eps(x_t, t):
        return eps_from_x_0(x_t, t, np.full_like(x_t, 0.7), schedule)

    x_T, walked = np.array([[1.5]]), schedule.noise[-1] ** 2
    for step in ddpm(predict_eps, x_T, schedule, np.random.default_rng(0), "beta_tilde"):
        mean, var = q_posterior(np.full_like(x_T, 0.7), step.x_t, step.t, schedule)
        np.testing.assert_allclose(
            step.mean,
            mean,
            rtol=0,
            atol=64 * EPS * (1 + np.abs(step.x_t).max()) / np.sqrt(schedule.alpha[step.t]),
        )
        weight = (
            np.sqrt(schedule.alpha[step.t])
            * (schedule.noise[step.t - 1] / schedule.noise[step.t]) ** 2
        )
        walked = weight**2 * walked + step.sigma**2
        assert step.sigma**2 == pytest.approx(var, rel=8 * EPS, abs=0)
        assert walked == pytest.approx(schedule.noise[step.t - 1] ** 2, rel=256 * EPS, abs=0)
    assert step.x_prev.item() == pytest.approx(0.7, rel=64 * EPS)


@every_schedule
@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_ddpm_reaches_the_moments_of_a_gaussian_in_standard_errors(schedule, variance):
    # The mean comes out exactly; the variance is what the multipliers and sigmas of the steps make
    # of that of x_T. Each of the two lies within 5 standard errors, a false alarm in 1.7 million.
    n, mean, s = 20_000, 0.4, 0.5
    predict_eps = Gaussian([mean], [[s**2]]).predictor(schedule)
    x_T = schedule.signal[-1] * mean + np.sqrt(variances(s, schedule)[-1]) * normal_values(3, n, 1)
    probe = np.array([[0.0], [1.0]])
    walked = variances(s, schedule)[-1]
    for step in ddpm(predict_eps, x_T, schedule, np.random.default_rng(4), variance):
        at_0, at_1 = p_mean_from_eps(probe, step.t, predict_eps(probe, step.t), schedule)[:, 0]
        walked = (at_1 - at_0) ** 2 * walked + step.sigma**2
    assert abs(step.x_prev.mean() - mean) < STANDARD_ERRORS * np.sqrt(walked / n)
    assert abs(step.x_prev.var() - walked) < STANDARD_ERRORS * walked * np.sqrt(2 / n)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_ddpm_comes_to_the_variance_of_the_data_at_first_order(variance):
    def walked_variance(schedule):
        walked = variances(0.5, schedule)[-1]
        for step in ddpm(
            centred(0.5).predictor(schedule),
            np.ones((1, 1)),
            schedule,
            np.random.default_rng(0),
            variance,
        ):
            walked = (step.mean / step.x_t).item() ** 2 * walked + step.sigma**2
        return walked

    counts = (400, 800, 1600)
    errors = [abs(walked_variance(linear(T, 0.1 / T, 20 / T)) - 0.25) for T in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.1)


def test_ddpm_needs_signal_at_T():
    predict_eps = centred(0.5).predictor(flow_matching(5))
    with pytest.raises(ValueError, match="signal"):
        next(ddpm(predict_eps, np.ones((1, 1)), flow_matching(5), np.random.default_rng(0)))


# DDIM


@every_schedule
@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 3, 10, 30])
def test_ddim_multiplies_a_gaussian_as_its_formula_says(schedule, s, steps):
    signal, noise, v = schedule.signal, schedule.noise, variances(s, schedule)
    for step in ddim(centred(s).predictor(schedule), np.ones((1, 1)), schedule, steps):
        multiplier = (
            signal[step.t_prev] * signal[step.t] * s**2 + noise[step.t_prev] * noise[step.t]
        ) / v[step.t]
        # x_0_hat = (x_t - noise eps_hat) / signal magnifies the rounding.
        terms = signal[step.t_prev] / signal[step.t]
        assert (step.x_prev / step.x_t).item() == pytest.approx(
            multiplier, rel=64 * EPS, abs=64 * EPS * terms
        )


@every_schedule
def test_ddim_of_a_single_point_carries_the_noise_along(schedule):
    # Where eps_hat is the noise itself, x_s = signal_s x_0 + sqrt(noise_s^2 - sigma^2) eps + sigma
    # z has the marginal's variance.
    x_0, eps = np.full((3, 1), 0.7), normal_values(0, 3, 1)
    x_T = schedule.signal[-1] * x_0 + schedule.noise[-1] * eps
    for eta in (0.0, 0.4, 1.0):
        for step in ddim(
            lambda x, t: eps_from_x_0(x, t, x_0, schedule),
            x_T,
            schedule,
            6,
            eta,
            np.random.default_rng(1),
        ):
            noise_left = np.sqrt(schedule.noise[step.t_prev] ** 2 - step.sigma**2)
            expected = schedule.signal[step.t_prev] * x_0 + noise_left * step.eps_hat
            # x_0_hat is 0.7 up to the rounding of x_t and of noise eps, over signal.
            atol = (
                64
                * EPS
                * schedule.signal[step.t_prev]
                * (1 + np.abs(step.x_t).max())
                / schedule.signal[step.t]
            )
            np.testing.assert_allclose(step.mean, expected, rtol=64 * EPS, atol=atol)
            assert (step.sigma > 0) == (eta > 0 and step.t_prev > 0)


def first_sigma(schedule, visited, eta):
    """sigma of ddim's first jump on the chain that visits only these t of `schedule`."""
    jumps = Schedule(schedule.signal[visited], schedule.noise[visited])
    x_T, rng = np.ones((1, 1)), np.random.default_rng(0)
    return next(ddim(lambda x, t: 0 * x, x_T, jumps, len(visited) - 1, eta, rng)).sigma


@every_schedule
def test_ddim_sigma_is_eta_times_the_deviation_of_the_posterior_over_the_jump(schedule):
    # Var[x_s | x_t, x_0] by Bayes, with x_t = r x_s + sqrt(w) eps over the jump.
    for t in range(2, schedule.T + 1):
        for t_prev in range(1, t):
            r = schedule.signal[t] / schedule.signal[t_prev]
            w = sum(
                schedule.beta[u] * (schedule.signal[t] / schedule.signal[u]) ** 2
                for u in range(t_prev + 1, t + 1)
            )
            expected = 0.7 / np.sqrt(1 / schedule.noise[t_prev] ** 2 + r**2 / w)
            sigma = first_sigma(schedule, [0, t_prev, t], 0.7)
            assert sigma == pytest.approx(expected, rel=512 * EPS)
        assert first_sigma(schedule, [0, t], 0.7) == 0
        beta_tilde = schedule.beta_tilde[t]
        assert first_sigma(schedule, [0, t - 1, t], 1.0) == pytest.approx(
            np.sqrt(beta_tilde), rel=64 * EPS
        )


@every_schedule
@pytest.mark.parametrize("steps", [2, 7, 30])
def test_ddim_takes_sigma_from_the_subsequence_that_it_visits(schedule, steps):
    tau = subsequence(schedule.T, steps)
    x_T, rng = schedule.noise[-1] * normal_values(0, 3, 1), np.random.default_rng(0)
    for step in ddim(centred(0.5).predictor(schedule), x_T, schedule, steps, 0.7, rng):
        i = tau.index(step.t)
        assert step.t_prev == tau[i - 1]
        visited = [0, step.t_prev, step.t] if step.t_prev else [0, step.t]
        expected = first_sigma(schedule, visited, 0.7)
        assert step.sigma == pytest.approx(expected, rel=16 * EPS, abs=0)


@every_schedule
def test_ddim_with_eta_1_and_every_step_is_ddpm_with_beta_tilde(schedule):
    predict_eps = Gaussian([0.4], [[0.25]]).predictor(schedule)
    x_T = schedule.noise[-1] * normal_values(0, 5, 1)
    walk = ddim(predict_eps, x_T, schedule, schedule.T, 1.0, np.random.default_rng(2))
    for one, two in zip(
        walk, ddpm(predict_eps, x_T, schedule, np.random.default_rng(2)), strict=True
    ):
        assert (one.t, one.t_prev) == (two.t, two.t_prev)
        assert one.sigma == pytest.approx(two.sigma, rel=64 * EPS, abs=0)
        np.testing.assert_array_equal(one.z, two.z)
        # A rounding of x_t, magnified by sqrt(1/alpha) a step, and no more than signal_1/signal_T
        # in all; 1e-9 leaves room.
        np.testing.assert_allclose(one.mean, two.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one.x_prev, two.x_prev, rtol=1e-9, atol=1e-9)


def test_ddim_with_eta_reaches_the_moments_of_a_gaussian_in_standard_errors():
    n, mean, s, schedule = 20_000, 0.4, 0.5, SCHEDULES["cosine"]
    predict_eps = Gaussian([mean], [[s**2]]).predictor(schedule)
    x_T = schedule.signal[-1] * mean + np.sqrt(variances(s, schedule)[-1]) * normal_values(3, n, 1)
    probes = ddim(
        centred(s).predictor(schedule), np.ones((1, 1)), schedule, 20, 0.7, np.random.default_rng(0)
    )
    walked = variances(s, schedule)[-1]
    for probe in probes:
        walked = (probe.mean / probe.x_t).item() ** 2 * walked + probe.sigma**2
    *_, last = ddim(predict_eps, x_T, schedule, 20, 0.7, np.random.default_rng(4))
    assert abs(last.x_prev.mean() - mean) < STANDARD_ERRORS * np.sqrt(walked / n)
    assert abs(last.x_prev.var() - walked) < STANDARD_ERRORS * walked * np.sqrt(2 / n)


def test_ddim_is_of_first_order():
    # From a fixed level to a fixed level, without the step to 0: N steps of a linear schedule in
    # continuous time u, log signal^2 = -(0.1 u + 9.95 u^2), cut at u = 0.1 .. 1. The error of log x
    # is then proportional to 1/N.
    s, errors = 0.5, []
    counts = (50, 100, 200, 400)
    for N in counts:
        u = np.concatenate([[0.0], np.linspace(0.1, 1.0, N + 1)])
        signal_2 = np.exp(-(0.1 * u + 9.95 * u**2))
        schedule = Schedule(np.sqrt(signal_2), np.sqrt(1 - signal_2))
        *_, last = (
            step
            for step in ddim(centred(s).predictor(schedule), np.ones((1, 1)), schedule, schedule.T)
            if step.t_prev > 0
        )
        v = variances(s, schedule)
        errors.append(abs(np.log(last.x_prev.item()) - 0.5 * np.log(v[1] / v[-1])))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.1)


def test_ddim_needs_signal_at_T():
    with pytest.raises(ValueError, match="signal"):
        next(ddim(centred(0.5).predictor(flow_matching(5)), np.ones((1, 1)), flow_matching(5), 5))


def test_subsequence_goes_from_0_to_T_in_nearly_equal_jumps():
    for T in [*range(1, 61), 1000]:
        for steps in range(1, T + 1):
            tau = subsequence(T, steps)
            jumps = np.diff(tau)
            assert tau[0] == 0 and tau[-1] == T and len(tau) == steps + 1
            assert jumps.min() >= 1 and jumps.max() - jumps.min() <= 1, (T, steps)
            assert all(type(t) is int for t in tau)
            # Each is the whole number next to where equal jumps would stand.
            exact = T * np.arange(steps + 1) / steps
            assert np.abs(tau - exact).max() <= 0.5 + 1e-9


# Refusals


@pytest.mark.parametrize("steps", [0, -1, 11, 5.0, "5", None])
def test_ddim_refuses_a_number_of_steps_outside_1_to_T(steps):
    with pytest.raises(ValueError, match=r"steps must be a whole number in 1\.\.10"):
        next(ddim(centred(1.0).predictor(linear(10)), np.ones((1, 1)), linear(10), steps))


@pytest.mark.parametrize("eta", [-0.1, 0.5, float("nan")])
def test_ddim_refuses_a_negative_eta_and_eta_without_a_generator(eta):
    with pytest.raises(ValueError, match="eta"):
        next(ddim(centred(1.0).predictor(linear(10)), np.ones((1, 1)), linear(10), 5, eta))


def test_ddim_refuses_more_noise_than_the_schedule_has():
    with pytest.raises(ValueError, match="take eta <= 1"):
        list(
            ddim(
                centred(1.0).predictor(linear(10)),
                np.ones((1, 1)),
                linear(10),
                5,
                50.0,
                np.random.default_rng(0),
            )
        )


def test_ddpm_refuses_other_variances():
    for schedule in (linear(10), linear(1)):
        with pytest.raises(ValueError, match="variance must be one of"):
            next(
                ddpm(
                    centred(1.0).predictor(schedule),
                    np.ones((1, 1)),
                    schedule,
                    np.random.default_rng(0),
                    "best",
                )
            )
