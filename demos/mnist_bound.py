"""Train on MNIST for the likelihood, learning the variance too; the bound in bits a pixel.

    python demos/mnist_bound.py --sample-only      the bound of the weights beside this file
    python demos/mnist_bound.py --minutes 60       trains a network of your own

demos/mnist.py trains for looks, and drops the weights of the bound's terms. Here the network is
trained on the bound itself (Nichol & Dhariwal 2021, arXiv:2102.09672): its output is [guess, o], a
prediction of v and where the variance lies between beta_tilde and beta. The network and the
schedule are those of Kingma et al. 2021, arXiv:2107.00630: levels down to almost no noise, where
the last bits of a pixel are decided.
"""

from lab import interrupt

interrupt.in_one_line(__name__)  # Ctrl-C, also while NumPy is imported

import argparse
import os

# One thread for each product, since the engine shares the batch among processes.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from lab import budget, checkpoint, cli, digits_flags, mnist, progress
from lab.digits_report import Report
from lab.errors import UserError
from lab.pieces import InPieces
from npdiff import fast
from npdiff.backend import select, standard_normal, to_numpy
from npdiff.nn.params import map_leaves
from npdiff.papers import improved_ddpm, vdm
from npdiff.sampler import ddim, ddpm
from npdiff.schedule import uniform_log_snr
from npdiff.train import State, TrainStep, start, train, update

DEFAULTS = {
    **digits_flags.DEFAULTS,
    **dict(objective="bound", batch=32, width=32, label_dropout=1.0, guidance=0.0),
}
SHIPPED_WEIGHTS = digits_flags.DEMOS / "mnist_bound_weights.npz"
EXAMPLES = """\
  python demos/mnist_bound.py --sample-only      the bound and some digits, with the shipped weights
  python demos/mnist_bound.py --minutes 60       a network of your own
  python demos/mnist_bound.py --resume           continue a run that was stopped"""


def main(args: argparse.Namespace) -> None:
    xp = select(args.backend)
    digits_flags.fill_preset(args, xp)
    training_rng, sampling_rng, judging_rng = (
        np.random.default_rng([args.seed, i]) for i in range(3)
    )

    # The data: digits scaled to [-1, 1]. The network is not told their class.
    digits = mnist.digits(args.data_dir, digits_flags.SHIPPED_DIGITS)

    def sample(n: int, rng: np.random.Generator) -> np.ndarray:
        return mnist.to_model(digits.train_x[rng.integers(len(digits.train_x), size=n)])

    # The forward process: equal steps of log-SNR.
    schedule = uniform_log_snr(args.T)
    report = Report(args, digits, schedule, judging_rng, xp)

    # The network: npdiff/papers/vdm.py, [guess, o] for v and the variance of each pixel.
    params = map_leaves(xp.asarray, vdm.init(training_rng, width=args.width))
    state = start(params, predict=args.predict)
    net: Any = vdm
    forward_net, adam_step = net, update
    if not args.plain:
        net, forward_net, adam_step = fast.engine(vdm, xp, args.threads)
    adam_step = partial(adam_step, lr=args.lr, hold=0.2, decay_2=0.99)

    # Training: Algorithm 1 of Ho et al. 2020, on L_vlb. The sampler of t learns from the losses: it
    # draws t where the terms are large, and weights them for that.
    objective = partial(improved_ddpm.vlb_objective, discretised=True)
    importance = improved_ddpm.ImportanceSampler(args.T)

    def training(
        state: State, rng: np.random.Generator, steps: int, draw_t: Callable
    ) -> Iterator[TrainStep]:
        return train(
            net, state, sample, schedule, rng, steps, args.batch, objective, draw_t, adam_step
        )

    if args.weights:
        digits_flags.load_weights(args.weights, state)
    elif args.resume or args.sample_only:
        checkpoint.load(args.checkpoint, state, training_rng, importance.last)
    if args.steps is None:  # as many as fit into the minutes, by a trial that leaves no trace
        trial_state, trial_rng = start(state.params, args.predict), copy.deepcopy(training_rng)
        as_later = improved_ddpm.ImportanceSampler(args.T)
        as_later.last[1:] = 1 / np.arange(1, args.T + 1)[:, None]  # t = 1 comes often, and is slow
        trial = training(trial_state, trial_rng, 10**9, as_later.draw)
        args.steps = budget.steps_in(args.minutes, trial)
        report.say_steps(args.steps)
    if not args.sample_only:
        steps = training(state, training_rng, args.steps, importance.draw)
        more = importance.last  # the checkpoint keeps it too
        steps = checkpoint.keep(
            steps, args.checkpoint, state, training_rng, args.settings, more=more
        )
        for step in progress.training(steps, state.step, args.steps, args.batch, unit="images"):
            importance.learn(step.t, to_numpy(step.losses))
    if args.weights is None:
        cli.say_trained(report.metrics, state.step, args.steps)

    # The reverse process: from noise, by the guess alone.
    forward_net = InPieces(forward_net)
    predict_eps = improved_ddpm.predictor(forward_net, state, schedule)
    x_T = standard_normal(sampling_rng, (args.samples, 28, 28, 1), like=state.theta)
    if args.sampler == "ddpm":
        reverse_process = ddpm(predict_eps, x_T, schedule, sampling_rng)
    else:
        reverse_process = ddim(predict_eps, x_T, schedule, args.sampling_steps)
    report.see(schedule.T, x_T)
    for back in progress.sampling(reverse_process, args.samples, unit="digits"):
        report.see(back.t_prev, back.x_prev)

    # The bound, term by term, with the learned variance.
    report.keep_samples(back.x_prev)
    report.keep_weights(state)
    report.judge_losses(lambda label: predict_eps)
    report.judge_samples()
    reverse = improved_ddpm.reverse(forward_net, state, schedule)
    report.judge_bound("the learned variance", reverse, report.pilot())
    report.write()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    flags = digits_flags.parser(__doc__, EXAMPLES, "mnist_bound")
    args = digits_flags.parse(flags, DEFAULTS, SHIPPED_WEIGHTS, argv)
    if args.T < 2:
        raise UserError(f"--T {args.T}: at least 2, since beta_tilde_2 stands for beta_tilde_1")
    return args


if __name__ == "__main__":  # the engine's workers import this file
    cli.run(main, parse)
