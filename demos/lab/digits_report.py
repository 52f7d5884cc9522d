"""All that a demo of digits prints, draws and writes. It neither trains nor samples."""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lab import (
    classifier,
    cli,
    digit_metrics,
    draw,
    files,
    judge,
    likelihood_report,
    mnist,
    progress,
)
from npdiff import __version__, likelihood
from npdiff.backend import Array, to_numpy
from npdiff.forward import q_sample
from npdiff.likelihood import spread_over_t
from npdiff.nn.params import Tree
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule, unit_variance
from npdiff.train import State


class Report:
    """Opened before training, shown every step of the sampler, written at the end."""

    def __init__(
        self,
        args: argparse.Namespace,
        digits: mnist.Digits,
        schedule: Schedule,
        rng: np.random.Generator,
        xp: Any,
    ) -> None:
        self.args, self.digits, self.schedule, self.rng, self.xp = args, digits, schedule, rng, xp
        self.started = time.monotonic()
        self.reverse_process: dict[int, np.ndarray] = {}  # ten digits at about forty t
        self.loss_at_t: list[dict[str, float]] = []
        self.x = np.empty(0)  # the drawn digits
        self.label: np.ndarray | None = None  # and the labels that they were drawn for, if any
        self.metrics: dict[str, Any] = {"npdiff": __version__, "settings": args.settings}
        self.metrics["backend"] = xp.__name__
        cli.own_folder(args)
        print(digits.note)
        state = judge.terminal_state(self.draw_training_digits, unit_variance(schedule), rng)
        self.metrics |= state
        settings = f"predict {args.predict}, T {args.T}, width {args.width}, batch {args.batch}"
        print(f"{settings}; {xp.__name__}, seed {args.seed}; writes to {args.out}")
        judge.say_terminal_state(state, "more steps (--T 1000)")
        if args.steps is not None and not args.sample_only:
            print(f"{args.steps} steps")

    def draw_training_digits(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return mnist.to_model(self.digits.train_x[rng.integers(len(self.digits.train_x), size=n)])

    def say_steps(self, steps: int) -> None:
        """Keep the number of steps that the minutes allow, so that a resumed run has the same."""
        self.args.settings["steps"] = steps
        print(f"{steps} steps fit into {self.args.minutes:g} minutes")

    def see(self, t: int, x_t: Array) -> None:
        """Keep ten digits, one of each class if all are drawn, at about forty t, for pictures."""
        kept = self.reverse_process
        if not kept or t <= min(kept) - self.schedule.T / 40 or t == 0:
            rows = np.linspace(0, len(x_t) - 1, 10).round().astype(int)
            kept[t] = self.pixels(x_t[rows], t)

    def pixels(self, x_t: Array, t: int) -> np.ndarray:
        """x_t in pixels, scaled to about unit variance first."""
        return mnist.to_pixels(x_t / float(self.schedule.std[t]))

    def keep_samples(self, samples: Array, label: np.ndarray | None = None) -> None:
        """Write samples.npz, and keep the digits for the figures and pictures.

        label=None for a network that is not told the class.
        """
        cli.check_samples(to_numpy(samples))
        self.x, self.label = mnist.to_pixels(samples), label
        labels = {} if label is None else {"label": label}
        files.write_npz(self.args.out / "samples.npz", x=self.x, **labels)

    def keep_weights(self, state: State) -> None:
        """Write the averaged parameters with their settings, unless they were read from a file."""
        if self.args.weights is None:
            theta = to_numpy(state.ema).astype(np.float16)
            settings = np.array(json.dumps(self.args.settings))
            files.write_npz(self.args.out / "weights.npz", theta=theta, settings=settings)

    def judge_losses(self, predictor_of: Callable[[np.ndarray], Predictor]) -> None:
        """L_simple, a pixel, on test digits: at about a dozen t, and averaged over all t.

        predictor_of(label) is the predict_eps for digits with these labels.
        """
        n = 12 if self.args.smoke else 256
        rows = self.rng.integers(len(self.digits.test_x), size=n)
        x_0, label = mnist.to_model(self.digits.test_x[rows]), self.digits.test_label[rows]
        predict_eps = predictor_of(label)

        def loss(t: int | np.ndarray) -> float:
            eps = self.rng.standard_normal(x_0.shape, dtype=np.float32)
            x_t = self.xp.asarray(q_sample(x_0, t, eps, self.schedule))
            return float(((to_numpy(predict_eps(x_t, t)) - eps) ** 2).mean())

        ts = spread_over_t(self.schedule.T, 14)
        self.loss_at_t = [{"t": t, "loss": loss(t)} for t in ts]
        every_t = judge.evenly(self.schedule.T, n)
        mean = float(np.mean([loss(every_t) for _ in range(4)]))
        self.metrics |= {"loss": mean, "loss_at_t": self.loss_at_t}
        print(f"loss on test digits, a pixel, averaged over t: {mean:.5f}")

    def judge_samples(self) -> None:
        """The figures of the drawn digits, each beside that of real digits."""
        if len(self.x) < 2:
            return
        steps = 5 if self.args.smoke else classifier.STEPS
        judging = classifier.load_or_train(self.digits, mnist.cache_folder(), steps, xp=self.xp)
        q = quality(self.x, self.label, judging, self.digits, self.rng)
        self.metrics |= q
        args, recognised = self.args, q["class_agreement_real"]
        print(f"the classifier that judges recognises {recognised:.2%} of the test digits")
        guidance = f", guidance {args.guidance:g}" if self.label is not None else ""
        drawn = f"{len(self.x):,} digits by {args.sampler}, {args.sampling_steps} steps{guidance}"
        print(f"\n{drawn}; in brackets, what real digits have in their place")
        rows = {
            "Frechet distance to the test set": (
                f"{q['frechet_distance']:.3f}",
                "as many training digits "
                f"{q['frechet_distance_real']:.3f} +- {q['frechet_distance_real_std']:.3f}",
            ),
            "largest error of the class shares": (f"{q['class_histogram_error']:.4f}", ""),
            "distance to the nearest training digit": (
                f"{q['nearest_distance']:.3f}",
                f"test digits {q['nearest_distance_real']:.3f}, "
                f"ratio {q['nearest_distance'] / q['nearest_distance_real']:.3f}",
            ),
        }
        if self.label is not None:
            agreement = f"{q['class_agreement']:.4f}"
            rows["agreement of class and label"] = (agreement, f"test digits {recognised:.4f}")
        for name, (drawn, real) in rows.items():
            print(f"{name:<39}{drawn:>8}" + (f"   ({real})" if real else ""))

    def judge_fixed_variances(self, predict_eps: Predictor) -> None:
        """The bound with each fixed variance, for a predictor that is not told the class."""
        pilot, rng = self.pilot(), self.rng
        loss = likelihood_report.loss_over_t(predict_eps, pilot, self.schedule, rng, self.xp)
        for name, variance in likelihood_report.variances(loss, self.schedule).items():
            self.judge_bound(name, likelihood.fixed(predict_eps, self.schedule, variance), pilot)

    def judge_bound(self, name: str, reverse: likelihood.Reverse, pilot: np.ndarray) -> None:
        """The bound for the test digits in bits a pixel, term by term."""
        x_0 = mnist.to_model(self.digits.test_x[: 20 if self.args.smoke else None])
        bound = likelihood_report.of_digits(x_0, pilot, self.schedule, reverse, self.rng, self.xp)
        likelihood_report.say_digits(name, bound, len(x_0))
        self.metrics.setdefault("likelihood", {})[name] = bound

    def pilot(self) -> np.ndarray:
        """A few training digits, by which the t of the bound are chosen."""
        return self.draw_training_digits(4 if self.args.smoke else 50, self.rng)

    def write(self) -> None:
        """Write metrics.json and the pictures."""
        self.metrics["seconds"] = round(time.monotonic() - self.started, 1)
        cli.write_metrics(self.args.out / "metrics.json", self.metrics)
        self.draw_processes()
        self.draw_samples()
        duration = progress.duration(time.monotonic() - self.started)
        print(f"done in {duration}; pictures, samples.npz and metrics.json are in {self.args.out}")

    def draw_processes(self) -> None:
        """A digit that dissolves into noise; ten digits that appear from it; the loss at each t."""
        out, T = self.args.out, self.schedule.T
        shares = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
        ts = [0, *(max(1, round(T * share)) for share in shares)]
        x_0 = mnist.to_model(self.digits.test_x[:1])
        dissolving = [self.pixels(self.noised(x_0, t), t) for t in ts]
        draw.strip(out / "dissolving.png", np.concatenate(dissolving), [f"t={t}" for t in ts])

        kept = self.reverse_process
        rows_at = (1, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0)
        rows = [min(kept, key=lambda t: abs(t - T * share)) for share in rows_at]
        appearing = np.concatenate([kept[t] for t in rows])
        draw.grid(out / "appearing.png", appearing, 10, row_labels=[f"t = {t}" for t in rows])
        if self.args.gif:
            frames = list(kept.values())
            draw.animation_images(out / "appearing.gif", frames, list(kept), columns=5)

        t, loss = (np.array([row[name] for row in self.loss_at_t]) for name in ("t", "loss"))
        draw.loss_over_t(out / "loss_over_t.png", t, loss)

    def noised(self, x_0: np.ndarray, t: int) -> np.ndarray:
        """x_0 after t steps of the forward process."""
        if t == 0:
            return x_0
        eps = self.rng.standard_normal(x_0.shape, dtype=np.float32)
        return q_sample(x_0, t, eps, self.schedule)

    def draw_samples(self) -> None:
        """Drawn digits below real ones; and some above their nearest training digits."""
        out, x, train_x = self.args.out, self.x, self.digits.train_x
        real, drawn, columns = self.real_and_drawn()
        images = np.concatenate([self.digits.test_x[real], x[drawn]])
        names = [] if self.label is None else [f"{c}" for c in np.unique(self.label)]
        row_labels = ["real"] * (len(real) // columns) + ["drawn"] * -(-len(drawn) // columns)
        draw.grid(out / "samples.png", images, columns, names, row_labels)

        some = np.linspace(0, len(x) - 1, min(10, len(x))).round().astype(int)
        nearest = train_x[digit_metrics.nearest(x[some], train_x)[1]]
        both, row_labels = np.concatenate([x[some], nearest]), ["drawn", "nearest in training"]
        draw.grid(out / "nearest.png", both, len(some), row_labels=row_labels)

    def real_and_drawn(self, rows: int = 10) -> tuple[np.ndarray, np.ndarray, int]:
        """Which test digits and which drawn ones are shown, row after row, and the columns.

        There are up to two rows of test digits, and up to `rows` of drawn ones. Where digits were
        drawn for labels, each column is a class.
        """
        if self.label is None:
            columns = min(10, len(self.x))
            real = np.arange(columns * min(2, len(self.digits.test_x) // columns))
            return real, np.arange(min(rows * columns, len(self.x))), columns
        classes = np.unique(self.label)
        real, drawn = (
            equally_many([np.flatnonzero(label == c)[:most] for c in classes])
            for label, most in ((self.digits.test_label, 2), (self.label, rows))
        )
        return real, drawn, len(classes)

    def write_inpainted(
        self, x_0: np.ndarray, mask: np.ndarray, drawn: Array, label: np.ndarray
    ) -> None:
        """Test digits x_0, the part of each that mask shows, and the draws that complete it."""
        x, digits = mnist.to_pixels(drawn), len(x_0)
        known = mnist.to_pixels(x_0 * mask - (1 - mask))
        rows = [mnist.to_pixels(x_0), known, *np.split(x, len(x) // digits)]
        draws = ["drawn"] * (len(rows) - 2)
        row_labels = ["test digit", f"known: {self.args.inpaint}", *draws]
        path = self.args.out / "inpainted.png"
        draw.grid(path, np.concatenate(rows), digits, row_labels=row_labels)
        files.write_npz(self.args.out / "inpainted.npz", x=x, label=label)
        print(f"inpainted.png and inpainted.npz are in {self.args.out}")


def equally_many(of_class: list[np.ndarray]) -> np.ndarray:
    """The first of each class, then the second of each, ..., as far as all of them have one."""
    fewest = min(map(len, of_class))
    return np.stack([rows[:fewest] for rows in of_class], axis=1).ravel()


def quality(
    x: np.ndarray,
    label: np.ndarray | None,
    judging: Tree,
    digits: mnist.Digits,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Figures of drawn digits (N, 28, 28), uint8, with the labels (N,) that they were drawn for.

    label=None for digits drawn without a label: these are compared with all classes, and have no
    class_agreement. Each figure stands beside that of real digits:

    frechet_distance         to the test set, in the classifier's features, in units of their mean
                             variance over the training set; _real: of as many training digits of
                             each class, mean and _std
    class_agreement          share of them whose label the classifier recognises; _real: of the test
                             digits, its accuracy
    class_histogram_error    largest difference between their class shares and the training set's
    nearest_distance         mean distance to the nearest training digit; _real: of test digits
    """
    drawn_for = label
    if label is None:
        label = digit_metrics.labels_in_proportion(digits.train_label, len(x))
    of_train, of_test = np.isin(digits.train_label, label), np.isin(digits.test_label, label)
    train_x, test_x, train_label = (
        digits.train_x[of_train],
        digits.test_x[of_test],
        digits.train_label[of_train],
    )
    features = [classifier.features(judging, images) for images in (train_x, test_x, x)]
    unit = np.sqrt(features[0].var(axis=0).mean())
    of_training, of_test_set, of_drawn = (of_images / unit for of_images in features)
    floor, floor_std = digit_metrics.frechet_floor(
        of_training, train_label, of_test_set, label, rng
    )
    classes, some = classifier.predicted(judging, x), rng.permutation(len(test_x))[: len(x)]
    recognised = classifier.predicted(judging, test_x) == digits.test_label[of_test]
    agreement = {} if drawn_for is None else {"class_agreement": float((classes == label).mean())}
    return {
        "frechet_distance": digit_metrics.frechet(of_drawn, of_test_set),
        "frechet_distance_real": floor,
        "frechet_distance_real_std": floor_std,
        **agreement,
        "class_agreement_real": float(recognised.mean()),
        "class_histogram_error": digit_metrics.histogram_error(classes, train_label),
        "nearest_distance": float(digit_metrics.nearest(x, train_x)[0].mean()),
        "nearest_distance_real": float(digit_metrics.nearest(test_x[some], train_x)[0].mean()),
    }
