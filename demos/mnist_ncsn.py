"""Draw digits with a noise-conditional score network: learn the score on a ladder of noise levels, draw by Langevin dynamics.

    python demos/mnist_ncsn.py --minutes 12        trains a network and draws with it

Song & Ermon 2019, arXiv:1907.05600: see npdiff/papers/ncsn.py. The ladder and the step follow the
rules of Song & Ermon 2020, arXiv:2006.09011. With --sampler ddim the same network draws by jumps
down the ladder, in the place of dynamics on each of its levels.
"""

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # the engine shares the batch among processes, not each product

import copy
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
from npdiff.train import start, train, update

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
    training_rng, sampling_rng, judging_rng = (np.random.default_rng([args.seed, i]) for i in range(3))

    # The data: digits scaled to [-1, 1]. Some labels are hidden, so the network learns to do without.
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
    net, forward_net, adam_step = ncsn, ncsn, update
    if not args.plain:
        net, forward_net, adam_step = fast.engine(ncsn, xp, args.threads)
    adam_step = partial(adam_step, lr=args.lr, hold=0.2, decay_2=0.99)

    # Training: denoising score matching.
    if args.weights:
        digits_flags.load_weights(args.weights, state)
    elif args.resume or args.sample_only:
        checkpoint.load(args.checkpoint, state, training_rng)
    if args.steps is None:  # as many steps as fit into the minutes, from a trial that leaves no trace
        trial_state, trial_rng = start(state.params, "score"), copy.deepcopy(training_rng)
        trial = train(
            net, trial_state, sample, schedule, trial_rng, 10**9, args.batch, ncsn.dsm, update=adam_step
        )
        args.steps = budget.steps_in(args.minutes, trial)
        report.say_steps(args.steps)
    if not args.sample_only:
        steps = train(
            net, state, sample, schedule, training_rng, args.steps, args.batch, ncsn.dsm, update=adam_step
        )
        steps = checkpoint.keep(steps, args.checkpoint, state, training_rng, args.settings)
        for _ in progress.training(steps, state.step, args.steps, args.batch, unit="images"):
            pass
    if args.weights is None:
        cli.say_trained(report.metrics, state.step, args.steps)

    # The reverse process: Langevin dynamics on each level of the ladder, and a last denoising.
    forward_net = InPieces(forward_net)
    label = digit_metrics.labels_in_proportion(digits.train_label, args.samples, map(int, args.digits))
    predict_eps = predictor(forward_net, state, schedule, guidance=args.guidance, label=label)
    z = standard_normal(sampling_rng, (args.samples, 28, 28, 1), like=state.theta)
    x_T = float(schedule.std[-1]) * z
    report.see(schedule.T, x_T)
    if args.sampler == "langevin":
        score = ncsn.score_of(forward_net, state, schedule, guidance=args.guidance, label=label)
        epsilon, steps_a_level = LANGEVIN_STEP * SIGMA_L**2, args.sampling_steps
        dynamics = ncsn.denoised_langevin(score, x_T, schedule, sampling_rng, epsilon, steps_a_level)
        evaluations = schedule.T * steps_a_level + 1
        for step in progress.counted(dynamics, evaluations, f"sampling {args.samples:,} digits"):
            report.see(step.t, step.x_next)
        x_0 = step.x_next
    else:
        jumps = ddim(predict_eps, x_T, schedule, args.sampling_steps)
        if args.sampler == "ddpm":
            jumps = ddpm(predict_eps, x_T, schedule, sampling_rng)
        for jump in progress.sampling(jumps, args.samples, unit="digits"):
            report.see(jump.t_prev, jump.x_prev)
        x_0 = jump.x_prev
    report.see(0, x_0)

    # How good they are.
    report.keep_samples(x_0, label)
    report.keep_weights(state)
    report.judge_losses(lambda label: predictor(forward_net, state, schedule, label=label))
    report.judge_samples()
    report.write()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    flags = digits_flags.parser(__doc__, EXAMPLES, "mnist_ncsn", ("ddpm", "ddim", "langevin"))
    digits_flags.add_class_flags(flags)
    args = digits_flags.parse(flags, DEFAULTS, shipped=None, argv=argv)
    if args.likelihood:
        raise UserError("--likelihood: Langevin dynamics have none; see mnist.py and mnist_bound.py")
    if args.sampler == "langevin":
        args.sampling_steps = args.sampling_steps or LANGEVIN_STEPS
    return args


if __name__ == "__main__":  # the engine's workers import this file
    cli.run(main, parse)
