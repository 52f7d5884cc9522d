"""The classic slips of the field, each planted on a copy of the tree: the tests that it names fail.

    python tests/slips.py            all of them, two at a time, in about three minutes
    python tests/slips.py sampler    those with this word in their file or description

Prints the slips that survive; the exit status is 1 if there are any. A slip is found by its source
text, which occurs once in its file. That the tests pass without it, the suite itself shows.
"""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# What the tests named here, and the lessons, need.
COPIED = (
    "npdiff",
    "tests",
    "demos/lab",
    "demos/lessons",
    "demos/mnist_bound_weights.npz",
    "setup.cfg",
)
SEEN, SURVIVES = "seen", "survives"
PATIENCE = 120  # seconds for one slip, by which it counts as an endless loop; most take two


class Slip(NamedTuple):
    file: str  # in npdiff/
    what: str
    right: str
    wrong: str
    tests: str  # arguments of pytest, in tests/


SLIPS = [
    # How much signal and how much noise
    Slip(
        "schedule.py",
        "alpha_bar for its root",
        "Schedule(np.sqrt(alpha_bar), ",
        "Schedule(alpha_bar, ",
        "test_schedule.py -k keeps_unit_variance",
    ),
    Slip(
        "schedule.py",
        "the variance of the noise for its deviation",
        ", np.sqrt(1 - alpha_bar))",
        ", 1 - alpha_bar)",
        "test_schedule.py -k keeps_unit_variance",
    ),
    Slip(
        "schedule.py",
        "the variance for the deviation, in x_t at unit variance",
        "Schedule(schedule.signal / schedule.std, ",
        "Schedule(schedule.signal / schedule.std**2, ",
        "test_schedule.py -k at_unit_variance",
    ),
    Slip(
        "schedule.py",
        "the ratio of two signals for its square",
        "self.alpha[1:] = (signal[1:] / signal[:-1]) ** 2",
        "self.alpha[1:] = signal[1:] / signal[:-1]",
        "test_schedule.py -k product_of_the_rates",
    ),
    Slip(
        "schedule.py",
        "beta_tilde with t and t - 1 exchanged",
        "noise[:-1] ** 2 / noise[1:] ** 2 * self.beta[1:]",
        "noise[1:] ** 2 / np.maximum(noise[:-1], 1e-3) ** 2 * self.beta[1:]",
        "test_schedule.py -k beta_tilde_is_below_beta",
    ),
    Slip(
        "schedule.py",
        "the logarithm of signal over noise for that of noise over signal",
        "np.log(noise) - np.log(signal)",
        "np.log(signal) - np.log(noise)",
        "test_schedule.py -k level_is_the_logarithm",
    ),
    Slip(
        "schedule.py",
        "t + 1 for t - 1",
        "(np.roll(signal, 1), np.roll(noise, 1))",
        "(np.roll(signal, -1), np.roll(noise, -1))",
        "test_schedule.py -k at_gives_the_tables_numbers",
    ),
    Slip(
        "schedule.py",
        "t counts from 0",
        "if lowest < 1 or highest > T:",
        "if lowest < 0 or highest >= T:",
        "test_schedule.py -k check_t_takes_every_step",
    ),
    Slip(
        "schedule.py",
        "equal steps of sqrt(beta)",
        "np.linspace(beta_1, beta_T, check_T(T))",
        "np.linspace(beta_1**0.5, beta_T**0.5, check_T(T)) ** 2",
        "test_schedule.py -k linear_rises",
    ),
    Slip(
        "schedule.py",
        "the cosine not squared",
        "f = np.cos(np.pi / 2 * (u + s) / (1 + s)) ** 2",
        "f = np.cos(np.pi / 2 * (u + s) / (1 + s))",
        "test_schedule.py -k square_of_a_cosine",
    ),
    Slip(
        "schedule.py",
        "the cosine without its offset s",
        "f = np.cos(np.pi / 2 * (u + s) / (1 + s)) ** 2",
        "f = np.cos(np.pi / 2 * u) ** 2",
        "test_schedule.py -k square_of_a_cosine",
    ),
    # The forward process
    Slip(
        "forward.py",
        "beta for its root",
        "s.beta**0.5 * eps",
        "s.beta * eps",
        "test_forward.py -k q_step_composed_t_times",
    ),
    Slip(
        "forward.py",
        "alpha for its root",
        "return s.alpha**0.5 * x_prev",
        "return s.alpha * x_prev",
        "test_forward.py -k q_step_composed_t_times",
    ),
    Slip(
        "forward.py",
        "alpha_bar for its root",
        "return s.signal * x_0 + s.noise * eps",
        "return s.signal**2 * x_0 + s.noise * eps",
        "test_forward.py -k q_sample_is_the_marginal",
    ),
    Slip(
        "forward.py",
        "1 - alpha_bar for its root",
        "return s.signal * x_0 + s.noise * eps",
        "return s.signal * x_0 + s.noise**2 * eps",
        "test_forward.py -k q_sample_is_the_marginal",
    ),
    Slip(
        "forward.py",
        "the standard deviation for the variance",
        "return s.signal * x_0, s.noise**2",
        "return s.signal * x_0, s.noise",
        "test_forward.py -k q_step_composed_t_times",
    ),
    Slip(
        "forward.py",
        "the posterior's two weights exchanged",
        "weight_x_0 * x_0 + weight_x_t * x_t",
        "weight_x_t * x_0 + weight_x_0 * x_t",
        "test_forward.py -k product_of_prior_and_likelihood",
    ),
    Slip(
        "forward.py",
        "the posterior's weight of x_0 with the signal at t",
        "weight_x_0 = s.signal_prev * s.beta",
        "weight_x_0 = s.signal * s.beta",
        "test_forward.py -k product_of_prior_and_likelihood",
    ),
    Slip(
        "forward.py",
        "beta for beta_tilde",
        "weight_x_t * x_t, s.beta_tilde",
        "weight_x_t * x_t, s.beta",
        "test_forward.py -k product_of_prior_and_likelihood",
    ),
    Slip(
        "forward.py",
        "1 / sqrt(alpha_bar) missing",
        "return (x_t - s.noise * eps) / s.signal",
        "return x_t - s.noise * eps",
        "test_forward.py -k conversions_recover",
    ),
    Slip(
        "forward.py",
        "the sign of v",
        "return s.signal * eps - s.noise * x_0",
        "return s.noise * x_0 - s.signal * eps",
        "test_forward.py -k v_is_signal_eps",
    ),
    Slip(
        "forward.py",
        "the sign of the score",
        "return -eps / s.noise",
        "return eps / s.noise",
        "test_forward.py -k score_of_the_marginal",
    ),
    Slip(
        "forward.py",
        "the score by the variance",
        "return -eps / s.noise",
        "return -eps / s.noise**2",
        "test_forward.py -k score_of_the_marginal",
    ),
    Slip(
        "forward.py",
        "the mean over the coordinates for their sum",
        "normal.kl(mean, var, 0.0, 1.0).reshape(len(x_0), -1).sum(axis=1)",
        "normal.kl(mean, var, 0.0, 1.0).reshape(len(x_0), -1).mean(axis=1)",
        "test_forward.py -k prior_kl_is_the_closed_form",
    ),
    # What a network is given, and what its output stands for
    Slip(
        "output.py",
        "the input not scaled to unit variance",
        "return x_t / s.std, ",
        "return x_t, ",
        "test_output.py -k network_is_given",
    ),
    Slip(
        "output.py",
        "the network is told the noise for its level",
        "schedule.level[t]",
        "schedule.noise[t]",
        "test_output.py -k network_is_given",
    ),
    Slip(
        "output.py",
        "the sign of v",
        "return (s.signal * eps - s.noise * x_0) / s.std",
        "return (s.noise * x_0 - s.signal * eps) / s.std",
        "test_output.py -k v_is_that_of_salimans",
    ),
    Slip(
        "output.py",
        "signal and noise exchanged",
        "(s.noise / s.std * x_t + s.signal * out) / s.std",
        "(s.signal / s.std * x_t + s.noise * out) / s.std",
        "test_output.py -k target_as_output_gives_eps",
    ),
    Slip(
        "output.py",
        "the sign of eps as x_0 moves",
        "return -s.signal / s.noise",
        "return s.signal / s.noise",
        "test_output.py -k an_error_of_the_output",
    ),
    Slip(
        "output.py",
        "the score taken for eps",
        'return out if predict == "eps" else -out',
        "return out",
        "test_output.py -k target_as_output_gives_eps",
    ),
    # The learned process
    Slip(
        "reverse.py",
        "1 / sqrt(alpha) missing",
        "return (x_t - s.beta / s.noise * eps_hat) / s.alpha**0.5",
        "return x_t - s.beta / s.noise * eps_hat",
        "test_reverse.py -k true_reverse_step",
    ),
    Slip(
        "reverse.py",
        "1 - alpha_bar for its root",
        "s.beta / s.noise * eps_hat",
        "s.beta / s.noise**2 * eps_hat",
        "test_reverse.py -k true_reverse_step",
    ),
    Slip(
        "reverse.py",
        "the sign of the score",
        "return (x_t + s.beta * score_hat)",
        "return (x_t - s.beta * score_hat)",
        "test_reverse.py -k by_eps_by_x_0_and_by_the_score",
    ),
    Slip(
        "reverse.py",
        "the mean moves with eps, not against it",
        "return -schedule.beta[t] / (",
        "return schedule.beta[t] / (",
        "test_reverse.py -k mean_per_eps",
    ),
    Slip(
        "reverse.py",
        "beta and beta_tilde exchanged",
        'return schedule.beta[t] if variance == "beta"',
        'return schedule.beta[t] if variance == "beta_tilde"',
        "test_reverse.py -k variance_is_that_of_the_schedule",
    ),
    Slip(
        "reverse.py",
        "the parameters of the last step for their average",
        "return params.ema_params, params.predict",
        "return params.params, params.predict",
        "test_reverse.py -k averaged_parameters",
    ),
    Slip(
        "reverse.py",
        "guidance: w for 1 + w",
        "return (1 + guidance) * eps_cond - guidance * eps_uncond",
        "return guidance * eps_cond + (1 - guidance) * eps_uncond",
        "test_gaps.py -k guidance",
    ),
    Slip(
        "reverse.py",
        "guidance: conditional and unconditional exchanged",
        "return (1 + guidance) * eps_cond - guidance * eps_uncond",
        "return (1 + guidance) * eps_uncond - guidance * eps_cond",
        "test_gaps.py -k guidance",
    ),
    # Sampling
    Slip(
        "sampler.py",
        "noise at the last step",
        "sigma = math.sqrt(p_variance(t, schedule, variance)) if t > 1 else 0.0\n"
        "        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else 0 * x_t",
        "sigma = math.sqrt(p_variance(t, schedule, variance))\n"
        "        z = standard_normal(rng, x_t.shape, like=x_t)",
        "test_sampler.py -k last_step_ends_at_the_guess",
    ),
    Slip(
        "sampler.py",
        "the variance for the standard deviation",
        "sigma = math.sqrt(p_variance(t, schedule, variance))",
        "sigma = float(p_variance(t, schedule, variance))",
        "test_sampler.py -k ddpm_takes_the_steps_of_p_theta",
    ),
    Slip(
        "sampler.py",
        "starts at T - 1",
        "for t in range(schedule.T, 0, -1):",
        "for t in range(schedule.T - 1, 0, -1):",
        "test_sampler.py -k walk_leads_from_T_to_0",
    ),
    Slip(
        "sampler.py",
        "the sign of DDIM's direction",
        "x_0_hat + (s.noise_prev**2 - sigma**2) ** 0.5 * eps_hat",
        "x_0_hat - (s.noise_prev**2 - sigma**2) ** 0.5 * eps_hat",
        "test_sampler.py -k ddim_multiplies_a_gaussian",
    ),
    Slip(
        "sampler.py",
        "eta adds noise and takes none from the direction",
        "(s.noise_prev**2 - sigma**2) ** 0.5 * eps_hat",
        "s.noise_prev * eps_hat",
        "test_sampler.py -k ddim_with_eta_1_and_every_step",
    ),
    Slip(
        "sampler.py",
        "eta times the variance for eta times the standard deviation",
        "sigma = eta * s.beta_tilde**0.5",
        "sigma = eta * s.beta_tilde",
        "test_sampler.py -k ddim_sigma_is_eta",
    ),
    Slip(
        "sampler.py",
        "DDIM's sigma from the steps that it leaps over",
        "sigma = eta * s.beta_tilde**0.5",
        "sigma = eta * schedule.at(t, x_t).beta_tilde**0.5",
        "test_sampler.py -k sigma_from_the_subsequence",
    ),
    Slip(
        "sampler.py",
        "DDIM's x_0 with the signal of the level that it leaves",
        "mean = s.signal_prev * x_0_hat",
        "mean = s.signal * x_0_hat",
        "test_sampler.py -k ddim_multiplies_a_gaussian",
    ),
    Slip(
        "sampler.py",
        "a subsequence that never reaches T",
        "[round(T * i / steps) for i in range(steps + 1)]",
        "[T // steps * i for i in range(steps + 1)]",
        "test_sampler.py -k subsequence_goes_from_0_to_T",
    ),
    Slip(
        "sampler.py",
        "a subsequence that never reaches 0",
        "[round(T * i / steps) for i in range(steps + 1)]",
        "[1 + round((T - 1) * i / steps) for i in range(steps + 1)]",
        "test_sampler.py -k subsequence_goes_from_0_to_T",
    ),
    # Data with a closed form
    Slip(
        "exact.py",
        "the sign in Tweedie's formula",
        "return -s.noise * self.score(x_t, s.signal, s.noise)",
        "return s.noise * self.score(x_t, s.signal, s.noise)",
        "test_exact.py -k predictor_of_a_gaussian",
    ),
    Slip(
        "exact.py",
        "the sign in Tweedie's formula of second order",
        "(1 + s.noise**2 * laplacian / self.dim)",
        "(1 - s.noise**2 * laplacian / self.dim)",
        "test_exact.py -k irreducible_loss_of_a_gaussian",
    ),
    Slip(
        "exact.py",
        "the signal for its square in a component's variance",
        "var = signal**2 * xp.asarray(self.variances[j]) + noise**2",
        "var = signal * xp.asarray(self.variances[j]) + noise**2",
        "test_exact.py -k log_prob_is_the_direct_formula",
    ),
    Slip(
        "exact.py",
        "the square of the score forgotten in the second derivative",
        "return score, spread - (score**2).sum(axis=1, keepdims=True)",
        "return score, spread",
        "test_exact.py -k irreducible_loss_is_the_divergence",
    ),
    Slip(
        "exact.py",
        "a slope for its square in the reverse step's covariance",
        "float(mean_per_eps(t, schedule)) ** 2 * cov_eps",
        "abs(float(mean_per_eps(t, schedule))) * cov_eps",
        "test_exact.py -k reverse_step_of_a_gaussian",
    ),
    Slip(
        "exact.py",
        "the roll standardised without its noise",
        "(mean_square - (self.centre**2).sum()) / 2 + noise**2",
        "(mean_square - (self.centre**2).sum()) / 2",
        "test_exact.py -k standardised_by_one_scalar",
    ),
    # The objective
    Slip(
        "loss.py",
        "the factor 2 of the gradient",
        "2 / error[0].size * slope * error",
        "1 / error[0].size * slope * error",
        "test_loss.py -k grad_out_is_the_gradient",
    ),
    Slip(
        "loss.py",
        "the gradient with respect to eps_hat for that to the output",
        "2 / error[0].size * slope * error",
        "2 / error[0].size * error",
        "test_loss.py -k grad_out_is_the_gradient",
    ),
    Slip(
        "loss.py",
        "divided by the batch as well",
        "2 / error[0].size * slope * error",
        "2 / error.size * slope * error",
        "test_loss.py -k grad_out_is_the_gradient",
    ),
    Slip(
        "loss.py",
        "the sum over the coordinates for their mean",
        "return x.reshape(len(x), -1).mean(axis=1)",
        "return x.reshape(len(x), -1).sum(axis=1)",
        "test_loss.py -k row_mean",
    ),
    # Networks
    Slip(
        "nn/ops.py",
        "the mean over the batch for its sum",
        "grad_b = grad_y.sum(axis=0)",
        "grad_b = grad_y.mean(axis=0)",
        "test_ops.py -k backward_is_the_gradient",
    ),
    Slip(
        "nn/ops.py",
        "the derivative of the sigmoid for that of x times it",
        "return grad_y * (s + y * (1 - s)), {}",
        "return grad_y * s * (1 - s), {}",
        "test_ops.py -k backward_is_the_gradient",
    ),
    Slip(
        "nn/ops.py",
        "the sign of the cosine's derivative",
        "grad_angle = grad_sin * cos - grad_cos * sin",
        "grad_angle = grad_sin * cos + grad_cos * sin",
        "test_ops.py -k backward_is_the_gradient",
    ),
    Slip(
        "nn/ops.py",
        "the level not clipped",
        "level = xp.clip(level, LEVEL_MIN, LEVEL_MAX)[:, None]",
        "level = level[:, None]",
        "test_ops.py -k clipped_level",
    ),
    Slip(
        "nn/conv.py",
        "the kernel mirrored",
        "y = y + shifted @ w[k, l]",
        "y = y + shifted @ w[-1 - k, -1 - l]",
        "test_conv.py -k conv2d_is_its_definition",
    ),
    Slip(
        "nn/conv.py",
        "a gradient written over where it should be added",
        "grad_padded[shift] += ",
        "grad_padded[shift] = ",
        "test_conv.py -k conv2d_gradients",
    ),
    Slip(
        "nn/conv.py",
        "the border not cut off",
        "grad_x = grad_padded[:, p : p + height, p : p + width]",
        "grad_x = grad_padded[:, :height, :width]",
        "test_conv.py -k conv2d_gradients",
    ),
    Slip(
        "nn/conv.py",
        "the gain's gradient from the tensor after gain and bias",
        "return gain * n + bias, (n, rstd, gain)",
        "return gain * n + bias, (gain * n + bias, rstd, gain)",
        "test_conv.py -k group_norm_gradients",
    ),
    Slip(
        "nn/conv.py",
        "a group norm's mean taken for a constant",
        "(g - group_mean(g) - n_grouped * group_mean(g * n_grouped))",
        "(g - n_grouped * group_mean(g * n_grouped))",
        "test_conv.py -k group_norm_gradients",
    ),
    Slip(
        "nn/conv.py",
        "a group norm's deviation taken for a constant",
        "(g - group_mean(g) - n_grouped * group_mean(g * n_grouped))",
        "(g - group_mean(g))",
        "test_conv.py -k group_norm_gradients",
    ),
    Slip(
        "nn/conv.py",
        "tiny outside of the root",
        "(group_mean(d * d) + tiny) ** 0.5",
        "(group_mean(d * d) ** 0.5 + tiny)",
        "test_conv.py -k group_norm_is_its_formula",
    ),
    Slip(
        "nn/conv.py",
        "every channel a group of its own",
        "return x.mean(axis=1, keepdims=True).mean(axis=3, keepdims=True)",
        "return x.mean(axis=1, keepdims=True)",
        "test_conv.py -k group_norm_is_its_formula",
    ),
    Slip(
        "nn/conv.py",
        "scale for 1 + scale",
        "grad_x = (1 + scale[:, None, None]) * grad_y",
        "grad_x = scale[:, None, None] * grad_y",
        "test_conv.py -k scale_shift_gradients",
    ),
    Slip(
        "nn/conv.py",
        "the mean over four pixels for their sum",
        "return rows[:, :, ::2] + rows[:, :, 1::2], {}",
        "return (rows[:, :, ::2] + rows[:, :, 1::2]) / 4, {}",
        "test_conv.py -k upsample_gradient",
    ),
    Slip(
        "nn/conv.py",
        "neighbouring rows mixed up",
        "x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)",
        "x.reshape(batch, height // 2, 2, width // 2, 2, channels)",
        "test_conv.py -k depth_to_space",
    ),
    Slip(
        "nn/mlp.py",
        "the gradient through the skip connection forgotten",
        "return grad_y + grad_h, grads",
        "return grad_h, grads",
        "test_mlp.py -k residual_backward",
    ),
    Slip(
        "nn/mlp.py",
        "weights of variance 1 / inputs^2",
        "/ np.float32(math.sqrt(inputs))",
        "/ np.float32(inputs)",
        "test_mlp.py -k init_draws_weights",
    ),
    Slip(
        "nn/unet.py",
        "the gradient through the skip connection forgotten",
        "grad_coarse + grad_h, encode_coarse, ops",
        "grad_h, encode_coarse, ops",
        "test_unet.py -k every_parameter_has_its_gradient",
    ),
    Slip(
        "nn/unet.py",
        "the halves of a concatenation exchanged",
        "grad_h, grad_fine = halves(grad_both)",
        "grad_fine, grad_h = halves(grad_both)",
        "test_unet.py -k every_parameter_has_its_gradient",
    ),
    Slip(
        "nn/unet.py",
        "one block's part in the embedding's gradient forgotten",
        "grad_e_1 + grad_e_2 + grad_e_3 + grad_e_4 + grad_e_5",
        "grad_e_1 + grad_e_2 + grad_e_4 + grad_e_5",
        "test_unet.py -k every_parameter_has_its_gradient",
    ),
    Slip(
        "nn/unet.py",
        "scale and shift exchanged on the way back",
        '[modulated["scale"], modulated["shift"]], axis=1',
        '[modulated["shift"], modulated["scale"]], axis=1',
        "test_unet.py -k every_parameter_has_its_gradient",
    ),
    Slip(
        "nn/unet.py",
        "an untrained block that is not the identity",
        '"conv_2": layer(rng, 3, 3, outputs, outputs, scale=0.0)',
        '"conv_2": layer(rng, 3, 3, outputs, outputs)',
        "test_gaps.py -k untrained_block",
    ),
    # The optimiser and the loop
    Slip(
        "optim.py",
        "no bias correction of the mean",
        "m_hat = m / (1 - decay_1**step)",
        "m_hat = m",
        "test_optim.py -k adam_takes_the_steps",
    ),
    Slip(
        "optim.py",
        "no bias correction of the variance",
        "v_hat = v / (1 - decay_2**step)",
        "v_hat = v",
        "test_optim.py -k adam_takes_the_steps",
    ),
    Slip(
        "optim.py",
        "beta_1 and beta_2 exchanged",
        "decay_1: float = 0.9,\n    decay_2: float = 0.999,",
        "decay_1: float = 0.999,\n    decay_2: float = 0.9,",
        "test_optim.py -k adam_has_the_defaults",
    ),
    Slip(
        "optim.py",
        "tiny inside the root",
        "(v_hat**0.5 + tiny)",
        "(v_hat + tiny) ** 0.5",
        "test_optim.py -k adam_takes_the_steps",
    ),
    Slip(
        "optim.py",
        "the average's decay inverted",
        "ema[...] = d * ema + (1 - d) * theta",
        "ema[...] = (1 - d) * ema + d * theta",
        "test_optim.py -k average_is_the_weighted_sum",
    ),
    Slip(
        "optim.py",
        "clipped by the square of the norm",
        "norm = (grad * grad).sum() ** 0.5",
        "norm = (grad * grad).sum()",
        "test_optim.py -k clip_norm",
    ),
    Slip(
        "optim.py",
        "short gradients lengthened",
        ".minimum(largest / (norm + 1e-12), 1.0)",
        ".maximum(largest / (norm + 1e-12), 1.0)",
        "test_optim.py -k clip_norm",
    ),
    Slip(
        "optim.py",
        "a cosine that rises",
        "0.5 * (1 + math.cos(math.pi * decayed))",
        "0.5 * (1 - math.cos(math.pi * decayed))",
        "test_optim.py -k along_half_a_cosine",
    ),
    Slip(
        "train.py",
        "t never T",
        "return rng.integers(1, T + 1, size=batch)",
        "return rng.integers(1, T, size=batch)",
        "test_train.py -k every_t_is_trained",
    ),
    Slip(
        "train.py",
        "weighted rows summed, not averaged",
        "weight / len(x_0)",
        "weight",
        "test_train.py -k slope_of_the_weighted_mean",
    ),
    Slip(
        "train.py",
        "the network sees the data and not the noised data",
        "x, level = network_input(x_t, t, schedule)",
        "x, level = network_input(x_0, t, schedule)",
        "test_train.py -k algorithm_1",
    ),
    Slip(
        "train.py",
        "t uniform where small t should come more often",
        "np.ceil(T * (1 - rng.random(batch)) ** 2)",
        "np.ceil(T * (1 - rng.random(batch)))",
        "test_train.py -k early_draws_t",
    ),
    # The likelihood
    Slip(
        "likelihood.py",
        "KL reversed",
        "normal.kl(mean_q, var_q, mean, var)",
        "normal.kl(mean, var, mean_q, var_q)",
        "test_likelihood.py -k only_the_prior_is_paid_for",
    ),
    Slip(
        "likelihood.py",
        "the decoder's upper tail cut off",
        "xp.where(x_0 > 0.999, math.inf, (x_0 + 1 / 255 - mean) / sigma)",
        "(x_0 + 1 / 255 - mean) / sigma",
        "test_likelihood.py -k probabilities_of_a_pixel",
    ),
    Slip(
        "likelihood.py",
        "a pixel of half the width",
        "-math.inf, (x_0 - 1 / 255 - mean) / sigma)",
        "-math.inf, (x_0 - mean) / sigma)",
        "test_likelihood.py -k density_times_its_width",
    ),
    Slip(
        "likelihood.py",
        "the bound without its term at T",
        "for t in range(schedule.T, 1, -1):",
        "for t in range(schedule.T - 1, 1, -1):",
        "test_likelihood.py -k ledger_and_a_single_path",
    ),
    Slip(
        "likelihood.py",
        "a slope for its square in the best variance",
        "np.concatenate([[0.0], w**2 * loss[1:]])",
        "np.concatenate([[0.0], np.abs(w) * loss[1:]])",
        "test_likelihood.py -k best_variance_of_gaussian_data",
    ),
    Slip(
        "likelihood.py",
        "the density of q without the log of its deviation",
        "- 0.5 * math.log(schedule.beta[t])",
        "- 0.0 * math.log(schedule.beta[t])",
        "test_gaps.py -k every_path_has_the_likelihood",
    ),
    Slip(
        "likelihood.py",
        "the mean square for its root",
        "root_mean_square.append(math.sqrt((nats**2).mean()))",
        "root_mean_square.append((nats**2).mean())",
        "test_likelihood.py -k importance_gives_the_least_variance",
    ),
    Slip(
        "likelihood.py",
        "multiplied by the probability, not divided",
        "per_row(1 / p[t], L_0)",
        "per_row(p[t], L_0)",
        "test_likelihood.py -k bound_for_their_mean",
    ),
    Slip(
        "likelihood.py",
        "the standard error without its root",
        "values.std(ddof=1) / math.sqrt(len(values))",
        "values.std(ddof=1) / len(values)",
        "test_likelihood.py -k ledger_and_a_single_path",
    ),
    Slip(
        "normal.py",
        "the sign of the KL's logarithm",
        "0.5 * (r - 1 - log(r) + ",
        "0.5 * (r - 1 + log(r) + ",
        "test_normal.py -k kl_is_the_mean_of_the_log_ratio",
    ),
    Slip(
        "normal.py",
        "the square of the variance for the variance",
        "-0.5 * (LOG_2PI + log(var) + (x - mean) ** 2 / var)",
        "-0.5 * (LOG_2PI + log(var) + (x - mean) ** 2 / var**2)",
        "test_normal.py -k log_prob_is_the_log",
    ),
    Slip(
        "normal.py",
        "2 pi for 2 pi e",
        "0.5 * (LOG_2PI + 1 + log(var))",
        "0.5 * (LOG_2PI + log(var))",
        "test_normal.py -k entropy_is_the_mean",
    ),
    Slip(
        "normal.py",
        "the sum over the batch for that over the components",
        "xp.exp(x - largest).sum(axis=1, keepdims=True)",
        "xp.exp(x - largest).sum(axis=0, keepdims=True)",
        "test_normal.py -k log_sum_exp",
    ),
    Slip(
        "normal.py",
        "the base of the logarithm",
        "BITS = 1 / math.log(2)",
        "BITS = math.log(2)",
        "test_papers.py -k null_model_of_the_roll",
    ),
    # Karras et al. 2022, and DPM-Solver
    Slip(
        "papers/edm.py",
        "levels in equal steps of sigma",
        "np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T) ** rho",
        "np.linspace(sigma_min, sigma_max, T)",
        "test_solvers.py -k levels_are_karras",
    ),
    Slip(
        "papers/edm.py",
        "Heun's second slope at the first level",
        "predict_eps(x_prev, t - 1)) / 2",
        "predict_eps(x_prev, t)) / 2",
        "test_solvers.py -k map_between_gaussians",
    ),
    Slip(
        "papers/edm.py",
        "c_in without its root",
        "c_in = 1 / total**0.5",
        "c_in = 1 / total",
        "test_solvers.py -k preconditioning_keeps",
    ),
    Slip(
        "papers/edm.py",
        "c_out without the data's deviation",
        "c_out = sigma * sigma_data / total**0.5",
        "c_out = sigma / total**0.5",
        "test_solvers.py -k preconditioning_keeps",
    ),
    Slip(
        "papers/edm.py",
        "the weight 1 / c_out for its square",
        "error = (out - x_0) / c_out",
        "error = (out - x_0) / c_out**0.5",
        "test_solvers.py -k each_rows_weighted_loss",
    ),
    Slip(
        "papers/dpm_solver.py",
        "r inverted",
        "r = previous_h / h",
        "r = h / previous_h",
        "test_solvers.py -k dpm_solver_extrapolates",
    ),
    Slip(
        "papers/dpm_solver.py",
        "interpolates for extrapolates",
        "D = (1 + 1 / (2 * r)) * x_0_hat - 1 / (2 * r) * previous_x_0_hat",
        "D = (1 - 1 / (2 * r)) * x_0_hat + 1 / (2 * r) * previous_x_0_hat",
        "test_solvers.py -k dpm_solver_extrapolates",
    ),
    # Song et al. 2021
    Slip(
        "papers/score_sde.py",
        "the sign of the drift, as time runs backwards",
        "mean = x_t - f_dt * x_t + g2_dt * score",
        "mean = x_t + f_dt * x_t + g2_dt * score",
        "test_solvers.py -k euler_maruyama_is_of_weak_order",
    ),
    Slip(
        "papers/score_sde.py",
        "the ODE's half of the score in the SDE",
        "mean = x_t - f_dt * x_t + g2_dt * score",
        "mean = x_t - f_dt * x_t + 0.5 * g2_dt * score",
        "test_solvers.py -k euler_maruyama_is_of_weak_order",
    ),
    Slip(
        "papers/score_sde.py",
        "noise at the last step",
        "sigma = g2_dt**0.5 if t > 1 else 0.0\n"
        "        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else 0 * x_t",
        "sigma = g2_dt**0.5\n        z = standard_normal(rng, x_t.shape, like=x_t)",
        "test_solvers.py -k every_sampler_walks",
    ),
    Slip(
        "papers/score_sde.py",
        "Langevin's noise without the factor 2",
        "x_t + e * score, (2 * e) ** 0.5",
        "x_t + e * score, e**0.5",
        "test_solvers.py -k a_corrector_step_has_the_length",
    ),
    Slip(
        "papers/score_sde.py",
        "the change of volume with the wrong sign",
        "math.log(s.signal) + integral",
        "math.log(s.signal) - integral",
        "test_solvers.py -k density_on_a_schedule_that_preserves_variance",
    ),
    Slip(
        "papers/score_sde.py",
        "the volume of the scaling, of one dimension for all",
        "return prior + x_0[0].size * math.log(s.signal)",
        "return prior + math.log(s.signal)",
        "test_solvers.py -k without_a_predicted_noise",
    ),
    Slip(
        "papers/score_sde.py",
        "Hutchinson's signs 0 and 1",
        "rng.choice([-1.0, 1.0], x_t.shape)",
        "rng.choice([0.0, 1.0], x_t.shape)",
        "test_solvers.py -k diagonal_jacobian",
    ),
    Slip(
        "papers/score_sde.py",
        "the divergence of the output for that of eps_hat",
        "return a_u + grad_x / s.std",
        "return grad_x / s.std",
        "test_solvers.py -k divergence_of_a_network",
    ),
    # Song & Ermon 2019 and 2020
    Slip(
        "papers/ncsn.py",
        "Langevin's noise without its root",
        "+ math.sqrt(step) * z\n            yield",
        "+ step * z\n            yield",
        "test_papers.py -k steps_that_grow",
    ),
    Slip(
        "papers/ncsn.py",
        "a whole step along the score for half of it",
        "x_next = x + step / 2 * score_hat",
        "x_next = x + step * score_hat",
        "test_papers.py -k steps_that_grow",
    ),
    Slip(
        "papers/ncsn.py",
        "score matching without its weight sigma^2",
        "row_mean(0.5 * s.noise**2 * error**2)",
        "row_mean(0.5 * error**2)",
        "test_papers.py -k denoising_score_matching_is_half",
    ),
    Slip(
        "papers/ncsn.py",
        "the last denoising by sigma for sigma^2",
        "x_t + s.noise**2 * score_hat, 0.0",
        "x_t + s.noise * score_hat, 0.0",
        "test_papers.py -k last_denoising_takes_out",
    ),
    Slip(
        "papers/ncsn.py",
        "a ladder in equal steps for equal ratios",
        "np.geomspace(sigma_L, sigma_1, L)",
        "np.linspace(sigma_L, sigma_1, L)",
        "test_papers.py -k ladder_rises",
    ),
    # Nichol & Dhariwal 2021, and Kingma et al. 2021
    Slip(
        "papers/improved_ddpm.py",
        "the ends of the variance exchanged",
        "return share * log_beta + (1 - share) * log_beta_tilde",
        "return share * log_beta_tilde + (1 - share) * log_beta",
        "test_improved_ddpm.py -k variance_lies_at_beta_tilde",
    ),
    Slip(
        "papers/improved_ddpm.py",
        "the variance's gradient by its whole range",
        "grad_o = 0.5 * (log_beta - log_beta_tilde) * grad_log_var",
        "grad_o = (log_beta - log_beta_tilde) * grad_log_var",
        "test_improved_ddpm.py -k each_rows_bound",
    ),
    Slip(
        "papers/improved_ddpm.py",
        "L_vlb with the weight 1",
        "[grad_guess, LAMBDA * grad_o], axis=-1",
        "[grad_guess, grad_o], axis=-1",
        "test_improved_ddpm.py -k hybrid_objective",
    ),
    Slip(
        "papers/improved_ddpm.py",
        "weighted by the probability of t, not by its inverse",
        "return t, 1 / (T * p[t])",
        "return t, T * p[t]",
        "test_improved_ddpm.py -k nats_over_p",
    ),
    Slip(
        "papers/improved_ddpm.py",
        "the mean for the root of the mean square",
        "np.sqrt((self.last[1:] ** 2).mean(axis=1))",
        "np.abs(self.last[1:]).mean(axis=1)",
        "test_improved_ddpm.py -k root_mean_square",
    ),
    Slip(
        "papers/improved_ddpm.py",
        "the decoder's upper tail forgotten in the gradient",
        "xp.where(x_0 > 0.999, 0.0, density_over_p(upper))",
        "density_over_p(upper)",
        "test_improved_ddpm.py -k end_values",
    ),
    Slip(
        "papers/vdm.py",
        "the sign of the cosine's derivative",
        "(cos * grad_sin - sin * grad_cos)",
        "(cos * grad_sin + sin * grad_cos)",
        "test_improved_ddpm.py -k network_that_sees_waves",
    ),
    # Sohl-Dickstein et al. 2015
    Slip(
        "papers/dpm2015.py",
        "the sign of an entropy at the ends of the chain",
        "return H_T - H_1 - H_p",
        "return H_T + H_1 - H_p",
        "test_papers.py -k bound_of_the_null_model",
    ),
    Slip(
        "papers/dpm2015.py",
        "the derivative of the sigmoid forgotten",
        "grad_z = (1 - var) * 0.5 * (1 - square / var)",
        "grad_z = 0.5 * (1 - square / var)",
        "test_papers.py -k each_rows_KL",
    ),
    Slip(
        "papers/dpm2015.py",
        "the variance for the standard deviation",
        "x_prev = mean + var**0.5 * z",
        "x_prev = mean + var * z",
        "test_papers.py -k learned_chain_walks",
    ),
    Slip(
        "papers/binomial.py",
        "a bit replaced by 1, not by a fair coin",
        "return x_prev * (1 - beta_t) + beta_t / 2",
        "return x_prev * (1 - beta_t) + beta_t",
        "test_papers.py -k summed_over_all_paths",
    ),
    Slip(
        "papers/binomial.py",
        "Bayes' rule with the prior of t",
        "prior = q_marginal(x_0, np.asarray(t) - 1, rates)",
        "prior = q_marginal(x_0, np.asarray(t), rates)",
        "test_papers.py -k bayes_by_enumeration",
    ),
    Slip(
        "papers/binomial.py",
        "the derivative of the sigmoid forgotten",
        "grad_p * (if_1 - if_0) * p_0 * (1 - p_0)",
        "grad_p * (if_1 - if_0)",
        "test_papers.py -k gradient_of_the_binomial_bound",
    ),
    Slip(
        "papers/posterior.py",
        "variances added for precisions",
        "new_var = 1 / (1 / var + 1 / r_var)",
        "new_var = var + r_var",
        "test_papers.py -k product_of_normals",
    ),
    Slip(
        "papers/posterior.py",
        "the known pixels with the noise of the level that is left",
        "known_prev = q_sample(known, t - 1, eps, schedule)",
        "known_prev = q_sample(known, t, eps, schedule)",
        "test_papers.py -k noise_of_the_level",
    ),
    Slip(
        "papers/posterior.py",
        "the known and the unknown pixels exchanged",
        "mask * known_prev + (1 - mask) * (mean + sigma * z)",
        "(1 - mask) * known_prev + mask * (mean + sigma * z)",
        "test_papers.py -k inpainting_replaces",
    ),
    Slip(
        "papers/radial_basis.py",
        "a softmax over the batch",
        "phi /= phi.sum(axis=1, keepdims=True)",
        "phi /= phi.sum(axis=0, keepdims=True)",
        "test_papers.py -k radial_basis_network_and_its_gradients",
    ),
    Slip(
        "papers/radial_basis.py",
        "the width for its square",
        'precision = xp.exp(-2 * params["s"])',
        'precision = xp.exp(-params["s"])',
        "test_papers.py -k radial_basis_network_and_its_gradients",
    ),
    # Straight lines, distillation, consistency
    Slip(
        "papers/flow_matching.py",
        "the weight of the flow-matching loss upside down",
        "weight = std**-2",
        "weight = std**2",
        "test_flow_matching.py -k loss_is_the_error_of_the_velocity",
    ),
    Slip(
        "papers/flow_matching.py",
        "a velocity from v with noise - signal",
        "return v / s.std - (s.signal - s.noise) / s.std**2 * x_t",
        "return v / s.std + (s.signal - s.noise) / s.std**2 * x_t",
        "test_flow_matching.py -k velocity_follows_from_v",
    ),
    Slip(
        "papers/flow_matching.py",
        "pairs whose rows are drawn apart",
        "net, state.params, x_0[rows], t, x_T[rows], schedule",
        "net, state.params, x_0[rows], t, x_T[rows[::-1]], schedule",
        "test_flow_matching.py -k reflow_learns",
    ),
    Slip(
        "papers/distillation.py",
        "the teacher asked twice at the first of its two steps",
        "teacher(x_mid, 2 * t - 1)",
        "teacher(x_mid, 2 * t)",
        "test_distillation.py -k target_leads",
    ),
    Slip(
        "papers/distillation.py",
        "a rotation the wrong way",
        "return math.cos(angle) * x_t - math.sin(angle) * v",
        "return math.cos(angle) * x_t + math.sin(angle) * v",
        "test_distillation.py -k rotation",
    ),
    Slip(
        "papers/consistency.py",
        "the error of f for that of v: without 1 / noise",
        "error = out - (s.signal * x_t - target) / s.noise",
        "error = s.noise * out - (s.signal * x_t - target)",
        "test_consistency.py -k loss_is_the_error_of_the_jump",
    ),
    Slip(
        "papers/consistency.py",
        "a jump that adds the noise",
        "return signal * x - noise * v",
        "return signal * x + noise * v",
        "test_consistency.py -k true_v",
    ),
    Slip(
        "exact.py",
        "the mean of x_0 with the sign of the score turned",
        "mean = mean - signal *",
        "mean = mean + signal *",
        "test_flow_matching.py -k add_up",
    ),
    Slip(
        "papers/mean_flow.py",
        "the sign of the identity",
        "return velocity - per_row(t - r, velocity) * du_dt",
        "return velocity + per_row(t - r, velocity) * du_dt",
        "test_mean_flow.py -k gaussian_satisfies",
    ),
    Slip(
        "papers/mean_flow.py",
        "du/dt without the change of t - r",
        "xp.full_like(x[:, -1:], PER_GAP)",
        "xp.full_like(x[:, -1:], 0.0)",
        "test_mean_flow.py -k gaussian_satisfies",
    ),
    Slip(
        "papers/mean_flow.py",
        "the velocity from noise to data",
        "return (1 - t_row) * x_0 + t_row * eps, eps - x_0",
        "return (1 - t_row) * x_0 + t_row * eps, x_0 - eps",
        "test_mean_flow.py -k is_u_on_average",
    ),
    Slip(
        "papers/mean_flow.py",
        "a sum over the batch for its mean",
        "net.backward(state.params, cache, grad_u / batch)",
        "net.backward(state.params, cache, grad_u)",
        "test_mean_flow.py -k held_fixed",
    ),
    Slip(
        "papers/mean_flow.py",
        "r = t at 0 and not at t",
        "np.where(rng.random(batch) < equal, t, r), t",
        "np.where(rng.random(batch) < equal, 0, r), t",
        "test_mean_flow.py -k draw_times",
    ),
    Slip(
        "papers/mean_flow.py",
        "a step of length t for one of length t - r",
        "z_r = z_t - (t - r) * average",
        "z_r = z_t - t * average",
        "test_mean_flow.py -k same_end",
    ),
    Slip(
        "nn/mlp.py",
        "the skip connection left out of the jvp",
        "return d_x + linear_jvp(d_h, linear_cache)",
        "return linear_jvp(d_h, linear_cache)",
        "test_mlp.py -k jvp_is_the_derivative",
    ),
    Slip(
        "nn/ops.py",
        "the sign of the derivative of a cosine",
        "-xp.sin(angle) * d_angle",
        "xp.sin(angle) * d_angle",
        "test_ops.py -k level_waves_jvp",
    ),
    Slip(
        "nn/ops.py",
        "a derivative along a level that is clipped",
        "(inside * d_level)[:, None] * f",
        "d_level[:, None] * f",
        "test_mlp.py -k beyond_the_range_is_0",
    ),
]


def tried(slip: Slip) -> tuple[str, float]:
    """SEEN where its tests fail, SURVIVES where they pass, else what happened; and the time."""
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        copy = copy_of_the_tree(Path(folder))
        file = copy / "npdiff" / slip.file
        file.write_text(file.read_text("utf-8").replace(slip.right, slip.wrong), "utf-8")
        # -B: a cache of bytecode tells files apart by whole seconds. No example is shrunk.
        command = [sys.executable, "-B", "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider"]
        command += ["--hypothesis-profile=slips", *f"tests/{slip.tests}".split()]
        env = {**os.environ, "PYTHONPATH": str(copy), "OPENBLAS_NUM_THREADS": "1"}
        options = dict(cwd=copy, env=env, capture_output=True, text=True, timeout=PATIENCE)
        try:
            result = subprocess.run(command, **options)
            other = f"pytest ends with {result.returncode}: {result.stdout}{result.stderr}"
            outcome = {0: SURVIVES, 1: SEEN}.get(result.returncode, other)
        except subprocess.TimeoutExpired:
            outcome = f"no end after {PATIENCE} s"
    return outcome, time.perf_counter() - began


def copy_of_the_tree(folder: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def main(word: str = "", slips: list[Slip] = SLIPS) -> int:
    """Try the slips with this word, print those that survive, and return the exit status."""
    slips = [slip for slip in slips if word in f"{slip.file} {slip.what}"]
    seen, slowest, began = 0, 0.0, time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        for slip, (outcome, seconds) in zip(slips, pool.map(tried, slips), strict=True):
            seen, slowest = seen + (outcome == SEEN), max(slowest, seconds)
            if outcome != SEEN:
                print(
                    f"{slip.file}: {slip.what}: {outcome}  (pytest tests/{slip.tests})", flush=True
                )
    print(
        f"{seen} of {len(slips)} slips seen in {time.perf_counter() - began:.0f} s, "
        f"{slowest:.1f} s at most each"
    )
    return int(seen < max(len(slips), 1))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
