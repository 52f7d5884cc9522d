"""Learn a swiss roll: train a denoiser, walk noise back to data, and hold every number against the exact answer.

    python demos/swiss_roll.py

The default is DDPM: the network predicts eps, beta rises linearly, T = 1000; but training draws the small t more often, and
--draw-t uniform is as published. demos/first_steps.py does that flat.
"""

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):  # products this small are faster on one thread
    os.environ.setdefault(name, "1")

import numpy as np

import _cli
import _data
import _points
from npdiff import schedule
from npdiff.backend import select, standard_normal
from npdiff.kit import checkpoint, parallel, progress
from npdiff.nn import mlp
from npdiff.nn.params import map_leaves
from npdiff.reverse import predictor
from npdiff.sampler import ddim, ddpm
from npdiff.train import start, train


def main(args: argparse.Namespace) -> None:
    parallel.keep_freed_memory()
    xp = select(args.backend)
    points = _data.points(args.data, args.digest)
    chain = schedule.linear(args.T) if args.schedule == "linear" else schedule.cosine(args.T)
    training_rng, sampling_rng, judging_rng = (np.random.default_rng([args.seed, i]) for i in range(3))
    report = _points.Report(args, points, chain, judging_rng, xp)

    # Training: Algorithm 1
    state = start(map_leaves(xp.asarray, mlp.init(training_rng)))
    if args.resume or args.sample_only:
        checkpoint.load(args.checkpoint, state, training_rng)
    steps = train(mlp, state, points.sample, chain, training_rng, args.steps, args.batch, args.predict, lr=args.lr, draw_t=report.draw_t)
    if not args.sample_only:
        steps = checkpoint.keep(steps, args.checkpoint, state, training_rng, args.settings)
        for _ in progress.training(steps, state.step, args.steps, args.batch, report.floor):
            pass
    _cli.say_trained(report.metrics, state.step, args.steps)
    predict_eps = predictor(mlp, state.ema_params, chain, args.predict)

    # Sampling: Algorithm 2, or jumps along the same chain
    x_T = standard_normal(sampling_rng, (args.samples, 2), like=state.theta)
    if args.sampler == "ddpm":
        way_back = ddpm(predict_eps, x_T, chain, sampling_rng)
    else:
        way_back = ddim(predict_eps, x_T, chain, args.sampling_steps)
    for step in progress.sampling(way_back, args.samples):
        report.see(step)

    report.write(predict_eps, step.x_prev, state.ema_params)


if __name__ == "__main__":
    _cli.run(main, parse=lambda: _points.parse(__doc__))
