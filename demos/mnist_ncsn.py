"""Draw digits with a noise-conditional score network, by Langevin dynamics.

    python demos/mnist_ncsn.py --minutes 12        trains a network and draws with it

The network learns the score of the data on a ladder of noise levels; the dynamics walk it down.
Song & Ermon 2019, arXiv:1907.05600: see npdiff/papers/ncsn.py. The ladder and the step follow the
rules of Song & Ermon 2020, arXiv:2006.09011. With --sampler ddim the same network draws by jumps
down the ladder, in the place of dynamics on each of its levels.
"""

from lab import interrupt

interrupt.in_one_line(__name__)  # Ctrl-C, also while NumPy is imported

import argparse
import os

# One thread for each product, since the engine shares the batch among processes.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from lab import budget, checkpoint, cli, digit_metrics, digits_flags, mnist, progress
from lab.digits_report import Report
from lab.errors import UserError
from lab.pieces import InPieces
from npdiff import fast
from npdiff.backend import select, standard_normal
from npdiff.nn.params import map_leaves
from npdiff.papers import ncsn
from npdiff.reverse import predictor
from npdiff.sampler import ddim, ddpm
from npdiff.train import State, TrainStep, start, train, update

# The ladder. sigma_1 is the largest distance between two digits. The ratio of 100 levels, 1.08, is
# that at which half of a level's shell in 784 dimensions lies in the next's. sigma_L is 2019's 0.01
# of the range of x. The step, a share of sigma^2, is the one that best keeps the variance of a
# point in 3 steps a level; at 5 steps, half or three times that rule's step drew worse.
SIGMA_L, SIGMA_1, LANGEVIN_STEPS, LANGEVIN_STEP = 0.02, 33.0, 3, 0.25

DEFAULTS = {
    **digits_flags.DEFAULTS,
    **dict(objective="ncsn", T=100, predict="score", sampler="langevin"),
}
EXAMPLES = """\
  python demos/mnist_ncsn.py --minutes 12                     a score network of your own
  python demos/mnist_ncsn.py --sample-only --sampler ddim     draw again, by DDIM
  python demos/mnist_ncsn.py --resume                         continue a run that was stopped"""


def main(args: argparse.Namespace) -> None:
    xp = select(args.backend)
    digits_flags.fill_preset(args, xp)
    training_rng, sampling_rng, judging_rng = (
        np.random.default_rng([args.seed, i]) for i in range(3)
    )

    # The data: digits scaled to [-1, 1]. Some labels are hidden: the network learns to do without.
    digits = mnist.digits(args.data_dir, digits_flags.SHIPPED_DIGITS)

    def sample(n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        rows = rng.integers(len(digits.train_x), size=n)
        hidden = rng.random(n) < args.label_dropout
        label = np.where(hidden, ncsn.NO_CLASS, digits.train_label[rows])
        return mnist.to_model(digits.train_x[rows]), {"label": label}

    # The forward process: a ladder of noise levels, the signal left as it is.
    schedule = ncsn.ladder(args.T, SIGMA_L, SIGMA_1)
    report = Report(args, digits, schedule, judging_rng, xp)

    # The network: sigma times the score, from the U-Net and a skip connection for x.
    params = map_leaves(xp.asarray, ncsn.init(training_rng, width=args.width))
    state = start(params, predict="score")
    net: Any = ncsn
    forward_net, adam_step = net, update
    if not args.plain:
        net, forward_net, adam_step = fast.engine(ncsn, xp, args.threads)
    adam_step = partial(adam_step, lr=args.lr, hold=0.2, decay_2=0.99)

    # Training: denoising score matching.
    def training(state: State, rng: np.random.Generator, steps: int) -> Iterator[TrainStep]:
        return train(
            net, state, sample, schedule, rng, steps, args.batch, ncsn.dsm, update=adam_step
        )

    if args.weights:
        digits_flags.load_weights(args.weights, state)
    elif args.resume or args.sample_only:
        checkpoint.load(args.checkpoint, state, training_rng)
    if args.steps is None:  # as many as fit into the minutes, by a trial that leaves no trace
        trial_state, trial_rng = start(state.params, "score"), copy.deepcopy(training_rng)
        args.steps = budget.steps_in(args.minutes, training(trial_state, trial_rng, 10**9))
        report.say_steps(args.steps)
    if not args.sample_only:
        steps = training(state, training_rng, args.steps)
        steps = checkpoint.keep(steps, args.checkpoint, state, training_rng, args.settings)
        for _ in progress.training(steps, state.step, args.steps, args.batch, unit="images"):
            pass  # step, x_0, t, eps, losses, loss, grad: a breakpoint here sees them all
    if args.weights is None:
        cli.say_trained(report.metrics, state.step, args.steps)

    # The reverse process: Langevin dynamics on each level of the ladder, and a last denoising.
    forward_net = InPieces(forward_net)
    label = digit_metrics.labels_in_proportion(
        digits.train_label, args.samples, map(int, args.digits)
    )
    predict_eps = predictor(forward_net, state, schedule, guidance=args.guidance, label=label)
    z = standard_normal(sampling_rng, (args.samples, 28, 28, 1), like=state.theta)
    x_T = float(schedule.std[-1]) * z
    if args.sampler == "langevin":
        score = ncsn.score_of(forward_net, state, schedule, guidance=args.guidance, label=label)
        epsilon, steps_a_level = LANGEVIN_STEP * SIGMA_L**2, args.sampling_steps
        reverse_process = ncsn.denoised_langevin(
            score, x_T, schedule, sampling_rng, epsilon, steps_a_level
        )
    elif args.sampler == "ddpm":
        reverse_process = ddpm(predict_eps, x_T, schedule, sampling_rng)
    else:
        reverse_process = ddim(predict_eps, x_T, schedule, args.sampling_steps)
    report.see(schedule.T, x_T)
    for step in progress.sampling(reverse_process, args.samples, unit="digits"):
        report.see(step.t_prev, step.x_prev)

    # How good they are.
    report.keep_samples(step.x_prev, label)
    report.keep_weights(state)
    report.judge_losses(lambda label: predictor(forward_net, state, schedule, label=label))
    report.judge_samples()
    report.write()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    flags = digits_flags.parser(__doc__, EXAMPLES, "mnist_ncsn", ("ddpm", "ddim", "langevin"))
    digits_flags.add_class_flags(flags)
    args = digits_flags.parse(flags, DEFAULTS, shipped=None, argv=argv)
    if args.likelihood:
        raise UserError(
            "--likelihood: Langevin dynamics have none; see mnist.py and mnist_bound.py"
        )
    if args.sampler == "langevin":
        args.sampling_steps = args.sampling_steps or LANGEVIN_STEPS
    return args


if __name__ == "__main__":  # the engine's workers import this file
    cli.run(main, parse)
