"""The slips of slips.py still fit the files that they are planted in, and a few of them are."""

import ast
import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import slips
from lesson_slips import LESSON_SLIPS
from slips import ROOT, SEEN, SLIPS, SURVIVES, Slip


@pytest.mark.parametrize("slip", SLIPS + LESSON_SLIPS, ids=lambda slip: f"{slip.file}: {slip.what}")
def test_a_slip_changes_one_place_of_its_file_and_names_tests_that_there_are(slip):
    text = (ROOT / "npdiff" / slip.file).read_text("utf-8")
    assert text.count(slip.right) == 1 and slip.wrong != slip.right
    ast.parse(text.replace(slip.right, slip.wrong))
    file, _, word = slip.tests.split()
    names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE)
    assert any(word in name for name in names)


def test_there_are_enough_slips_and_no_two_are_one():
    assert len(SLIPS) >= 60
    for which in (SLIPS, LESSON_SLIPS):
        assert len({slip._replace(what="") for slip in which}) == len(which)


def test_a_few_slips_planted_are_seen():
    """All of them: python tests/slips.py, and python tests/lesson_slips.py."""
    sample = random.Random(0).sample(SLIPS, 5) + random.Random(0).sample(LESSON_SLIPS, 1)
    with ThreadPoolExecutor(2) as pool:
        outcomes = [outcome for outcome, _ in pool.map(slips.tried, sample)]
    assert outcomes == [SEEN] * 6, list(zip(sample, outcomes, strict=True))


HARMLESS = Slip(
    "forward.py",
    "a sum in another order",
    "return s.signal * x_0 + s.noise * eps",
    "return s.noise * eps + s.signal * x_0",
    "test_forward.py -k q_sample_is_the_marginal",
)


def test_a_slip_that_changes_nothing_survives_and_is_printed(capsys):
    assert slips.main(slips=[HARMLESS]) == 1
    out = capsys.readouterr().out
    assert f"forward.py: a sum in another order: {SURVIVES}" in out and "0 of 1 slips seen" in out


def test_a_slip_without_tests_does_not_count_as_seen():
    outcome, _ = slips.tried(HARMLESS._replace(tests="test_forward.py -k no_such_test"))
    assert outcome not in (SEEN, SURVIVES) and "pytest ends with 5" in outcome
