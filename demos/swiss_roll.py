"""Learn a swiss roll: train a denoiser, turn noise into data, compare with the exact answer.

    python demos/swiss_roll.py

The default is Ho et al. 2020, arXiv:2006.11239: the network predicts eps, beta rises linearly, T is
1000, t is drawn uniformly. demos/first_steps.py is the same without flags, files and figures.
"""

from lab import interrupt

interrupt.in_one_line(__name__)  # Ctrl-C, also while NumPy is imported

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # products this small are faster on one thread

from functools import partial

import numpy as np

from lab import checkpoint, cli, points, points_flags, progress
from lab.points_report import Report
from npdiff import fast
from npdiff.backend import select, standard_normal
from npdiff.nn import mlp
from npdiff.nn.params import map_leaves
from npdiff.papers import edm, score_sde
from npdiff.reverse import predictor
from npdiff.sampler import ddim, ddpm
from npdiff.schedule import cosine, linear
from npdiff.train import early, start, train, uniform, update


def main(args: argparse.Namespace) -> None:
    xp = select(args.backend)
    fast.keep_freed_memory()  # NumPy is a fifth faster when it can use freed memory again
    training_rng, sampling_rng, judging_rng = (
        np.random.default_rng([args.seed, i]) for i in range(3)
    )

    # The data, and the forward process.
    data = points.load(args.data, args.digest, args.scale)
    schedule = linear(args.T) if args.schedule == "linear" else cosine(args.T)
    report = Report(args, data, schedule, judging_rng, xp)

    # The network: npdiff/nn/mlp.py. On a GPU the engine runs it in fewer kernels.
    state = start(map_leaves(xp.asarray, mlp.init(training_rng)), predict=args.predict)
    net, adam_step = mlp, update
    if xp is not np:
        net, _, adam_step = fast.engine(mlp, xp)

    # Training: Algorithm 1, on minibatches.
    draw_t = uniform if args.draw_t == "uniform" else early
    if args.resume or args.sample_only:
        checkpoint.load(args.checkpoint, state, training_rng)
    irreducible = report.irreducible_loss(draw_t(5 * args.points, schedule.T, judging_rng))
    if not args.sample_only:
        steps = train(
            net,
            state,
            data.sample,
            schedule,
            training_rng,
            steps=args.steps,
            batch=args.batch,
            draw_t=draw_t,
            update=partial(adam_step, lr=args.lr),
        )
        steps = checkpoint.keep(steps, args.checkpoint, state, training_rng, args.settings)
        for _ in progress.training(steps, state.step, args.steps, args.batch, irreducible):
            pass  # step, x_0, t, eps, losses, loss, grad: a breakpoint here sees them all
    cli.say_trained(report.metrics, state.step, args.steps)

    # The reverse process: Algorithm 2, or jumps along the same schedule.
    predict_eps = predictor(net, state, schedule)
    x_T = standard_normal(sampling_rng, (args.samples, 2), like=state.theta)
    if args.sampler == "ddpm":
        reverse_process = ddpm(predict_eps, x_T, schedule, sampling_rng)
    else:
        reverse_process = ddim(predict_eps, x_T, schedule, args.sampling_steps)
    report.see(schedule.T, x_T)
    for step in progress.sampling(reverse_process, args.samples):
        report.see(step.t_prev, step.x_prev)

    # How good the network and its samples are.
    report.keep_samples(step.x_prev)
    report.judge_losses(predict_eps)
    report.judge_samples(step.x_prev)
    if args.likelihood:
        sigma = schedule.noise[1:] / schedule.signal[1:]
        levels = edm.levels(10 if args.smoke else 200, sigma[0], min(sigma[-1], 150.0))
        ode = score_sde.exact_divergence(net, state, levels)
        report.judge_likelihood(predict_eps, ode, levels)
    report.write(predict_eps)


if __name__ == "__main__":
    cli.run(main, parse=lambda: points_flags.parse(__doc__))
