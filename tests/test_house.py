"""The shape of the house: who imports whom, how long a function is, how much code there is, what an
import costs."""

import ast
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import npdiff

ROOT = Path(npdiff.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__init__.py"
}

# Each file of the core imports only files that stand before it here. A new file has to be given its
# place.
CORE = [
    "backend",
    "fuse",
    "normal",
    "schedule",
    "forward",
    "exact",
    "reverse",
    "sampler",
    "loss",
    "nn.ops",
    "nn.params",
    "nn.mlp",
    "nn.conv",
    "nn.layout",
    "nn.winograd",
    "nn.fast",
    "nn.cuda",
    "nn.unet",
    "likelihood",
    "optim",
    "train",
]
ROOMS = ("papers", "kit")
THIRD_PARTY = {
    "backend": {"numpy", "cupy"},
    "fuse": {"numpy", "cupy"},
    "nn.cuda": {"numpy", "cupy"},
}  # the others of the core know NumPy alone


ON_A_GPU = ("nn.cuda", "kit.replay")  # these import CuPy, and are imported where it is chosen
IMPORTED = [name for name in CORE if name not in ON_A_GPU]


def room(name):
    """ "papers" or "kit", or "core"."""
    first = name.partition(".")[0]
    return first if first in ROOMS else "core"


def imports(path):
    """All modules that a file names in an import, wherever it stands, as absolute names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def own_imports(name):
    """The files of the package that one of its files imports, by their names here."""
    inside = {
        found.removeprefix("npdiff.")
        for found in imports(FILES[name])
        if found.startswith("npdiff.")
    }
    return inside & set(FILES)


def functions(path):
    return [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def body_lines(function):
    """Lines from the first statement to the last, the docstring aside."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def yields(function):
    return any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in ast.walk(function))


def code_lines(path):
    """Lines that hold code: not blank, not a comment, not part of a docstring."""
    if path.suffix == ".cu":
        return sum(
            1
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip() and not line.strip().startswith("//")
        )
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    nothing = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
    with tokenize.open(path) as file:
        tokens = [
            token for token in tokenize.generate_tokens(file.readline) if token.type not in nothing
        ]
    return len(
        {line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - docstrings
    )


def python(*lines):
    """The output of a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_file_of_the_core_has_its_place_in_the_order_of_dependence():
    assert {name for name in FILES if room(name) == "core"} == set(CORE)


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_only_what_stands_before_it(name):
    before = set(CORE[: CORE.index(name)])
    assert own_imports(name) <= before, f"{name} imports {sorted(own_imports(name) - before)}"


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_numpy_alone(name):
    outside = (
        {found.partition(".")[0] for found in imports(FILES[name])}
        - set(sys.stdlib_module_names)
        - {"npdiff"}
    )
    assert outside <= THIRD_PARTY.get(name, {"numpy"})


def test_papers_import_the_core_and_never_one_another():
    for name in FILES:
        if room(name) == "papers":
            assert {room(other) for other in own_imports(name)} <= {"core"}, name


def test_the_kit_imports_the_core_and_itself():
    for name in FILES:
        if room(name) == "kit":
            assert {room(other) for other in own_imports(name)} <= {"core", "kit"}, name


def test_no_file_of_the_package_imports_in_a_circle():
    left = {name: own_imports(name) for name in FILES}
    while left:
        free = [name for name, needed in left.items() if not needed & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


DEMOS = sorted((ROOT.parent / "demos").glob("*.py"))


@pytest.mark.parametrize("path", [*FILES.values(), *DEMOS], ids=lambda path: path.stem)
def test_a_function_fits_on_one_screen(path):
    for function in functions(path):
        limit = 40 if yields(function) or function.name == "main" else 25
        assert body_lines(function) <= limit, f"{function.name} has {body_lines(function)} lines"


def test_a_paper_has_200_lines_at_most():
    for name, path in FILES.items():
        assert (
            room(name) != "papers" or len(path.read_text(encoding="utf-8").splitlines()) <= 200
        ), name


def test_the_package_stays_small():
    by_file = {name: code_lines(path) for name, path in FILES.items()} | {
        path.name: code_lines(path) for path in ROOT.rglob("*.cu")
    }
    assert sum(by_file.values()) <= 2500, by_file


def test_lines_of_code_are_counted_without_blanks_comments_and_docstrings(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text(
        '"""Two\nlines."""\n\n# a comment\nx = (1,\n     2)  # two\n\n\ndef f():\n    """One."""\n    return """\n\n    text"""\n'
    )
    assert code_lines(path) == 6


def test_importing_the_core_imports_neither_cupy_nor_pillow_nor_torch():
    loaded = python(
        "import sys",
        "import npdiff",
        *(f"import npdiff.{name}" for name in IMPORTED),
        "print(*sys.modules)",
    ).split()
    assert {f"npdiff.{name}" for name in IMPORTED} <= set(loaded)
    assert not {"cupy", "PIL", "torch", "scipy", "npdiff.kit", "npdiff.papers"} & set(loaded)


def test_importing_the_core_costs_little_more_than_importing_numpy():
    # The best of three fresh interpreters, against a busy machine.
    lines = [
        "import time, numpy",
        "start = time.perf_counter()",
        "import npdiff",
        *(f"import npdiff.{name}" for name in IMPORTED),
    ]
    assert min(float(python(*lines, "print(time.perf_counter() - start)")) for _ in range(3)) < 0.2
