import io

import numpy as np

from lab.progress import Line, duration, sampling, training
from npdiff.sampler import Step
from npdiff.train import TrainStep


def test_duration_is_in_the_usual_units():
    assert [duration(s) for s in (0.2, 59.4, 60, 125)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "2 min 05 s",
    ]
    assert [duration(s) for s in (3599, 3600, 4210)] == ["59 min 59 s", "1 h 00 min", "1 h 10 min"]


def test_training_passes_every_step_on_and_ends_with_the_mean_loss(capsys):
    nothing = dict(x_0=None, t=None, eps=None, losses=None, grad=None)
    steps = [TrainStep(step=i, loss=np.float32(i), **nothing) for i in range(1, 5)]
    assert list(training(steps, 0, 4, batch=2, floor=0.5)) == steps
    output = capsys.readouterr().out
    assert "training 4/4" in output and "loss 2.5000 (irreducible 0.5000)" in output
    assert "0 s left" in output and "\r" not in output


def test_sampling_passes_every_step_on(capsys):
    steps = [Step(t, t - 1, *[None] * 7) for t in (3, 2, 1)]
    assert list(sampling(steps, 10)) == steps
    assert "t 0" in capsys.readouterr().out


def test_a_terminal_gets_one_line_written_over_itself_and_a_file_plain_lines():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        line = Line(stream)
        line.show("a")
        line.show("b", last=True)
    assert terminal.getvalue() == "\ra\x1b[K\rb\x1b[K\n" and file.getvalue() == "a\nb\n"
