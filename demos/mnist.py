"""Draw digits: train a class-conditional U-Net on MNIST, walk noise back to digits, and measure how good they are.

    python demos/mnist.py --sample-only        draws at once, with the weights that lie beside this file
    python demos/mnist.py --minutes 12         trains a network of your own

The mathematics is that of demos/swiss_roll.py; the network is npdiff/nn/unet.py.
"""

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):  # the batch is shared among threads, not each product
    os.environ.setdefault(name, "1")

import copy

import numpy as np

import _budget
import _cli
import _digits
from npdiff.backend import select
from npdiff.kit import checkpoint, mnist, parallel, progress
from npdiff.nn.params import map_leaves
from npdiff.sampler import ddim, ddpm
from npdiff.train import start, train


def main(args: argparse.Namespace) -> None:
    parallel.keep_freed_memory()
    xp = select(args.backend)
    _digits.preset(args, xp)
    digits = mnist.digits(args.data_dir, _digits.SHIPPED_DIGITS)
    net, chain = _digits.network(args, xp)
    training_rng, sampling_rng, judging_rng = (np.random.default_rng([args.seed, i]) for i in range(3))
    report = _digits.Report(args, digits, net, chain, judging_rng, xp)

    # Training: Algorithm 1, on digits and their labels
    state = start(map_leaves(xp.asarray, net.init(training_rng, width=args.width)))
    if args.resume or args.sample_only:
        report.load(state, training_rng)
    sample = _digits.draw_digits(digits, args.label_dropout)
    if args.steps is None:
        trial = start(state.params), sample, chain, copy.deepcopy(training_rng), 10**9, args.batch
        args.steps = _budget.steps_in(args.minutes, train(net, *trial, **report.recipe(trial=True)))
        report.say_steps()
    if not args.sample_only:
        steps = train(net, state, sample, chain, training_rng, args.steps, args.batch, **report.recipe())
        steps = checkpoint.keep(steps, args.checkpoint, state, training_rng, args.settings, more=report.importance.last)
        for _ in progress.training(steps, state.step, args.steps, args.batch, unit="images"):
            pass

    # Sampling, with guidance towards the labels
    if args.weights is None:
        _cli.say_trained(report.metrics, state.step, args.steps)
    if args.inpaint:
        return report.inpaint(state.ema_params, sampling_rng)
    labels = report.labels()
    predict_eps = report.predictor(state.ema_params, labels)
    x_T = report.start(args.samples, sampling_rng)
    if args.sampler == "langevin":
        way_back = _digits.langevin(predict_eps, x_T, chain, sampling_rng, args.sampling_steps)
    elif args.sampler == "ddpm":
        way_back = ddpm(predict_eps, x_T, chain, sampling_rng)
    else:
        way_back = ddim(predict_eps, x_T, chain, args.sampling_steps)
    for step in progress.sampling(way_back, args.samples, unit="digits"):
        report.see(step)
    report.write(state.ema_params, step.x_prev, labels)


if __name__ == "__main__":
    _cli.run(main, parse=lambda: _digits.parse(__doc__))
