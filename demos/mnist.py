"""Draw digits: train a class-conditional U-Net on MNIST, turn noise into digits, measure them.

    python demos/mnist.py --sample-only        draws at once, with the weights beside this file
    python demos/mnist.py --minutes 12         trains a network of your own

The mathematics is that of demos/swiss_roll.py on images. The choices are later than DDPM's:
the network predicts v (Salimans & Ho 2022, arXiv:2202.00512), the schedule is the cosine (Nichol &
Dhariwal 2021, arXiv:2102.09672), the sampler is DDIM (Song et al. 2021, arXiv:2010.02502), and
guidance is classifier-free (Ho & Salimans 2022, arXiv:2207.12598).
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

from lab import budget, checkpoint, cli, digit_metrics, digits_flags, mnist, progress, settings
from lab.digits_report import Report
from lab.pieces import InPieces
from npdiff import fast
from npdiff.backend import select, standard_normal
from npdiff.loss import l_target
from npdiff.nn import unet
from npdiff.nn.params import map_leaves
from npdiff.papers import posterior
from npdiff.reverse import predictor
from npdiff.sampler import Predictor, ddim, ddpm
from npdiff.schedule import Schedule, cosine
from npdiff.train import State, TrainStep, start, train, update

HALVES: dict[str, Any] = {"top": np.s_[:, :14], "bottom": np.s_[:, 14:]}  # of images (B, 28, 28, 1)
HALVES |= {"left": np.s_[:, :, :14], "right": np.s_[:, :, 14:]}
SHIPPED_WEIGHTS = digits_flags.DEMOS / "mnist_weights.npz"
EXAMPLES = """\
  python demos/mnist.py --sample-only                          draw with the shipped weights
  python demos/mnist.py --sample-only --digits 37 --guidance 2 threes and sevens, more typical ones
  python demos/mnist.py --sample-only --inpaint left           draw the right half of test digits
  python demos/mnist.py --minutes 12                           a network of your own
  python demos/mnist.py --resume                               continue a run that was stopped
  python demos/mnist.py --backend cupy --minutes 5             on a GPU"""


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
        label = np.where(hidden, unet.NO_CLASS, digits.train_label[rows])
        return mnist.to_model(digits.train_x[rows]), {"label": label}

    # The forward process.
    schedule = cosine(args.T)
    report = Report(args, digits, schedule, judging_rng, xp)

    # The network: npdiff/nn/unet.py. The engine runs the same network faster.
    params = map_leaves(xp.asarray, unet.init(training_rng, width=args.width))
    state = start(params, predict=args.predict)
    net: Any = unet
    forward_net, adam_step = net, update
    if not args.plain:
        net, forward_net, adam_step = fast.engine(unet, xp, args.threads)
    adam_step = partial(adam_step, lr=args.lr, hold=0.2, decay_2=0.99)

    # Training: Algorithm 1 of Ho et al. 2020, on the squared error of v.
    def training(state: State, rng: np.random.Generator, steps: int) -> Iterator[TrainStep]:
        return train(
            net, state, sample, schedule, rng, steps, args.batch, l_target, update=adam_step
        )

    if args.weights:
        digits_flags.load_weights(args.weights, state)
    elif args.resume or args.sample_only:
        checkpoint.load(args.checkpoint, state, training_rng)
    if args.steps is None:  # as many as fit into the minutes, by a trial that leaves no trace
        trial_state, trial_rng = start(state.params, args.predict), copy.deepcopy(training_rng)
        args.steps = budget.steps_in(args.minutes, training(trial_state, trial_rng, 10**9))
        report.say_steps(args.steps)
    if not args.sample_only:
        steps = training(state, training_rng, args.steps)
        steps = checkpoint.keep(steps, args.checkpoint, state, training_rng, args.settings)
        for _ in progress.training(steps, state.step, args.steps, args.batch, unit="images"):
            pass  # step, x_0, t, eps, losses, loss, grad: a breakpoint here sees them all
    if args.weights is None:
        cli.say_trained(report.metrics, state.step, args.steps)

    # The reverse process: from noise, with guidance towards each digit's label.
    forward_net = InPieces(forward_net)
    if args.inpaint:
        predict = partial(predictor, forward_net, state, schedule, guidance=args.guidance)
        return inpaint(args, digits, report, predict, schedule, sampling_rng, xp)
    label = digit_metrics.labels_in_proportion(
        digits.train_label, args.samples, map(int, args.digits)
    )
    predict_eps = predictor(forward_net, state, schedule, guidance=args.guidance, label=label)
    x_T = standard_normal(sampling_rng, (args.samples, 28, 28, 1), like=state.theta)
    if args.sampler == "ddpm":
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
    if args.likelihood:
        report.judge_fixed_variances(predictor(forward_net, state, schedule))
    report.write()


def inpaint(
    args: argparse.Namespace,
    digits: mnist.Digits,
    report: Report,
    predict: Callable[..., Predictor],
    schedule: Schedule,
    rng: np.random.Generator,
    xp: Any,
) -> None:
    """A test digit of each class, half of it known, and three draws of the other half.

    Sec. 2.5, Sohl-Dickstein et al. 2015, arXiv:1503.03585: see npdiff/papers/posterior.py.
    """
    draws = 3
    first = [int(np.flatnonzero(digits.test_label == int(c))[0]) for c in args.digits]
    x_0, label = mnist.to_model(digits.test_x[first]), digits.test_label[first]
    mask = np.zeros((1, 28, 28, 1), np.float32)  # 1 where the digit is known
    mask[HALVES[args.inpaint]] = 1
    known = xp.asarray(np.tile(x_0, (draws, 1, 1, 1)))
    predict_eps = predict(label=np.tile(label, draws))
    x_T = standard_normal(rng, known.shape, like=known)
    steps = posterior.inpaint(predict_eps, x_T, schedule, rng, known, xp.asarray(mask))
    *_, last = progress.sampling(steps, len(known), unit="digits")
    report.write_inpainted(x_0, mask, last.x_prev, np.tile(label, draws))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    flags = digits_flags.parser(__doc__, EXAMPLES, "mnist")
    digits_flags.add_class_flags(flags)
    text = "what the network predicts: eps or v; default v"
    flags.add_argument("--predict", type=cli.one_of("eps", "v"), help=text)
    text = "draw the other half of test digits; known is the left, right, top or bottom half"
    flags.add_argument("--inpaint", type=cli.one_of(*HALVES), metavar="HALF", help=text)
    args = digits_flags.parse(flags, digits_flags.DEFAULTS, SHIPPED_WEIGHTS, argv)
    if not args.inpaint:  # which takes all T steps of ancestral sampling
        settings.check_jumps(args, cosine(args.T))
    return args


if __name__ == "__main__":  # the engine's workers import this file
    cli.run(main, parse)
