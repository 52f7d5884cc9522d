"""The rules of the house, held by parsing the sources.

Who imports whom; that nothing is put into a module from outside; how long a function and a line
are; how many frames a step enters. Each rule is also shown a source that breaks it.
tests/test_what_runs.py sees the other half: that what is read is what runs.
"""

import ast
import inspect
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import npdiff
from npdiff import forward, sampler, schedule
from npdiff.train import train

PACKAGE = Path(npdiff.__file__).parent
ROOT = PACKAGE.parent
DEMOS = ROOT / "demos"

# The book: each file imports only files that stand before it here. A new file is given its place.
BOOK = [
    "npdiff.backend",
    "npdiff.normal",
    "npdiff.schedule",
    "npdiff.forward",
    "npdiff.output",
    "npdiff.reverse",
    "npdiff.sampler",
    "npdiff.exact",
    "npdiff.loss",
    "npdiff.nn.params",
    "npdiff.nn.ops",
    "npdiff.nn.mlp",
    "npdiff.nn.conv",
    "npdiff.nn.unet",
    "npdiff.optim",
    "npdiff.train",
    "npdiff.likelihood",
    "npdiff.gradcheck",
]
EMPTY = ("npdiff", "npdiff.nn", "npdiff.papers")  # packages whose __init__.py imports nothing


def module_name(path: Path, root: Path) -> str:
    """ "npdiff.nn.ops" for npdiff/nn/ops.py, "npdiff.fast" for npdiff/fast/__init__.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path, ROOT): path for path in sorted(PACKAGE.rglob("*.py"))}
DEMO_FILES = {module_name(path, DEMOS): path for path in sorted(DEMOS.rglob("*.py"))}
SOURCES = {name: path.read_text("utf-8") for name, path in (FILES | DEMO_FILES).items()}
PAPERS = [name for name in FILES if name.startswith("npdiff.papers.")]
ENGINE = [name for name in FILES if name == "npdiff.fast" or name.startswith("npdiff.fast.")]


# Who imports whom


def imports(source: str) -> set[str]:
    """All modules that a source names in an import, wherever it stands, as absolute names."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:  # a module of a package, or a name of a module
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in SOURCES else str(node.module))
    return names


OURS = {name: imports(source) & set(SOURCES) for name, source in SOURCES.items()}


def out_of_order(order: list[str], graph: dict[str, set[str]]) -> list[str]:
    """Imports of a file that do not stand before it in `order`."""
    return [
        f"{name} imports {other}"
        for i, name in enumerate(order)
        for other in sorted(graph[name] - set(order[:i]))
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The files that are in a circle of imports, or import one that is."""
    left = dict(graph)
    while left:
        free = [name for name, needed in left.items() if not needed & set(left)]
        if not free:
            break
        for name in free:
            del left[name]
    return sorted(left)


def test_every_file_has_its_place():
    assert set(FILES) == {*BOOK, *PAPERS, *ENGINE, *EMPTY}
    assert all(not imports(SOURCES[name]) for name in EMPTY)


def test_the_book_imports_in_the_order_in_which_it_is_read():
    # And so neither a paper, nor the engine, nor a demo.
    assert not out_of_order(BOOK, OURS)


def test_papers_import_the_book_and_never_one_another():
    for name in PAPERS:
        assert OURS[name] <= set(BOOK), name


def test_the_engine_imports_the_book_and_itself():
    for name in ENGINE:
        assert OURS[name] <= {*BOOK, *ENGINE}, name
    assert any(OURS[name] & set(BOOK) for name in ENGINE)


def test_the_lab_imports_the_package_and_itself_and_no_demo():
    lab = [name for name in DEMO_FILES if name == "lab" or name.startswith("lab.")]
    assert lab and not any(part.startswith("_") for name in DEMO_FILES for part in name.split("."))
    for name in lab:
        assert OURS[name] <= {*FILES, *lab}, name


def test_there_is_no_circle_of_imports():
    assert not circle(OURS)


@pytest.mark.parametrize("name", [*BOOK, *PAPERS])
def test_the_package_needs_numpy_alone(name):
    outside = {module.partition(".")[0] for module in imports(SOURCES[name])}
    outside -= {*sys.stdlib_module_names, "npdiff"}
    assert outside <= ({"numpy", "cupy"} if name == "npdiff.backend" else {"numpy"})


def test_a_planted_import_is_seen():
    assert imports("def f():\n    from npdiff.nn import conv, fast\n    import npdiff.train") == {
        "npdiff.nn.conv",
        "npdiff.nn",
        "npdiff.train",
    }
    assert imports("from npdiff.fast import engine") == {"npdiff.fast"}
    assert out_of_order(["a", "b"], {"a": {"b"}, "b": {"a"}}) == ["a imports b"]
    assert out_of_order(["a", "b"], {"a": set(), "b": {"npdiff.fast"}}) == ["b imports npdiff.fast"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


# What one reads is what runs: nothing is put into a module from outside it

MODULE_PARAMETERS = ("net", "module", "ops")


def module_names(tree: ast.Module) -> set[str]:
    """The names that may stand for a module: imports, names given to them, parameters like `net`.

    PyTorch is left out: its settings are attributes, torch.backends.cudnn.allow_tf32 = False.
    """
    names = set(MODULE_PARAMETERS)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg) and "ModuleType" in ast.unparse(node):
            names.add(node.arg)
    names.discard("torch")
    while True:  # m = module; for m in (module, ...)
        more = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                more |= renamed(node.targets, node.value, names)
            elif isinstance(node, (ast.For, ast.comprehension)):
                values = node.iter.elts if isinstance(node.iter, (ast.Tuple, ast.List)) else []
                for value in values:
                    more |= renamed([node.target], value, names)
        if more <= names:
            return names
        names |= more


def renamed(targets: list[ast.expr], value: ast.expr, modules: set[str]) -> set[str]:
    """The names among `targets` that become a module by being assigned this value."""
    if not is_module(value, modules):
        return set()
    return {target.id for target in targets if isinstance(target, ast.Name)}


def is_module(node: ast.expr, modules: set[str]) -> bool:
    """Whether an expression may be a module: module, package.module, self.net, sys.modules[...]."""
    if isinstance(node, ast.Name):
        return node.id in modules
    if isinstance(node, ast.Attribute):
        return node.attr in MODULE_PARAMETERS or is_module(node.value, modules)
    if isinstance(node, ast.Subscript):  # sys.modules[...]
        return ast.unparse(node.value) == "sys.modules"
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
    return False


def is_namespace(node: ast.expr, modules: set[str]) -> bool:
    """Whether an expression is the dict behind a module: vars(module), module.__dict__."""
    if isinstance(node, ast.Attribute):
        return node.attr == "__dict__" and is_module(node.value, modules)
    called = isinstance(node, ast.Call) and ast.unparse(node.func) == "vars"
    return called and any(is_module(a, modules) for a in node.args)  # type: ignore[attr-defined]


def assignments_into_modules(source: str) -> list[str]:
    """The expressions of a source that assign an attribute of a module, or delete one."""
    tree = ast.parse(source)
    modules, seen = module_names(tree), []
    for node in ast.walk(tree):
        stored = isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del))
        if isinstance(node, ast.Attribute) and stored:
            wrong = is_module(node.value, modules)
        elif isinstance(node, ast.Subscript) and stored:
            wrong = is_namespace(node.value, modules) or is_module(node, modules)
        elif isinstance(node, ast.Call):
            wrong = is_setting_call(node, modules)
        else:
            wrong = False
        if wrong:
            seen.append(f"line {node.lineno}: {ast.unparse(node)}")
    return seen


def is_setting_call(node: ast.Call, modules: set[str]) -> bool:
    """setattr(module, ...), object.__setattr__(module, ...), vars(module).update(...), ..."""
    function = ast.unparse(node.func)
    if function in ("setattr", "delattr") or function.endswith(("__setattr__", "__delattr__")):
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        objects = [*node.args[:1], *([owner] if owner is not None else [])]
        return any(is_module(a, modules) for a in objects)
    changes = ("update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__")
    if isinstance(node.func, ast.Attribute) and node.func.attr in changes:
        return is_namespace(node.func.value, modules)
    return False


@pytest.mark.parametrize("name", [*FILES, *DEMO_FILES])
def test_nothing_is_put_into_a_module_from_outside(name):
    assert not assignments_into_modules(SOURCES[name])


@pytest.mark.parametrize(
    "source",
    [
        "from npdiff.nn import conv\nconv.conv2d_forward = fast",
        "import npdiff.nn.conv\nnpdiff.nn.conv.conv2d_forward = fast",
        "from npdiff.nn import conv as c\nc.GROUPS += 1",
        "from npdiff.nn import conv\nconv.GROUPS: int = 8",
        "from npdiff.nn import conv\na, conv.GROUPS = 1, 2",
        "from npdiff.nn import conv\nfor conv.GROUPS in (4, 8): pass",
        "from npdiff.nn import conv\nwith open('f') as conv.f: pass",
        "from npdiff.nn import conv\ndel conv.conv2d_forward",
        "from npdiff.nn import conv\nm = conv\nm.conv2d_forward = fast",
        "from npdiff.nn import conv, ops\nfor m in (conv, ops):\n    m.f = fast",
        "def put_into(net):\n    net.conv2d_forward = fast",
        "def put_into(net):\n    setattr(net, name, fast)",
        "def put_into(module):\n    module.conv2d_forward = fast",
        "lambda ops: setattr(ops, name, fast)",
        "def put_into(target: ModuleType):\n    target.f = fast",
        "class A:\n    def f(self):\n        self.net.forward = fast",
        "from npdiff.nn import conv\nsetattr(conv, 'conv2d_forward', fast)",
        "from npdiff.nn import conv\ndelattr(conv, 'conv2d_forward')",
        "from npdiff.nn import conv\nobject.__setattr__(conv, 'conv2d_forward', fast)",
        "from npdiff.nn import conv\nconv.__setattr__('conv2d_forward', fast)",
        "from npdiff.nn import conv\nvars(conv)['conv2d_forward'] = fast",
        "from npdiff.nn import conv\nconv.__dict__['conv2d_forward'] = fast",
        "from npdiff.nn import conv\nvars(conv).update(conv2d_forward=fast)",
        "from npdiff.nn import conv\nconv.__dict__.pop('conv2d_forward')",
        "import sys\nsys.modules['npdiff.nn.conv'] = fast",
        "import sys\nsys.modules['npdiff.nn.conv'].conv2d_forward = fast",
        "import importlib\nimportlib.import_module('npdiff.nn.conv').conv2d_forward = fast",
    ],
)
def test_a_planted_assignment_into_a_module_is_seen(source):
    assert len(assignments_into_modules(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from npdiff.train import start\nstate = start(params)\nstate.step += 1",
        "import os\nos.environ['OPENBLAS_NUM_THREADS'] = '1'",
        "class A:\n    def __init__(self, net):\n        self.net, self.calls = net, 0",
        "import numpy as np\nx = np.zeros(3)\nx[0] = 1",
        "from npdiff.nn import ops\nforwards = {name: f for name, f in vars(ops).items()}",
        "setattr(args, name, value)",
        "import torch\ntorch.backends.cudnn.allow_tf32 = False",
    ],
)
def test_what_assigns_into_no_module_is_left_alone(source):
    assert not assignments_into_modules(source)


# Functions and lines


def functions(source: str) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            yield node


def lines_of(function: ast.FunctionDef) -> int:
    """From `def` to the last line, the docstring aside."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def too_long(source: str, is_demo: bool = False) -> list[str]:
    """The functions that do not fit on a screen of 40 lines; a demo's main may be longer."""
    return [
        f"{function.name} has {lines_of(function)} lines"
        for function in functions(source)
        if lines_of(function) > 40 and not (is_demo and function.name == "main")
    ]


def swallowing(source: str) -> list[str]:
    """The functions that take arguments only to drop them: *_, **_ and the like."""
    return [
        function.name
        for function in functions(source)
        for rest in (function.args.vararg, function.args.kwarg)
        if rest is not None and rest.arg.startswith("_")
    ]


def with_default_ops(source: str) -> list[str]:
    """The functions other than a network's `forward` and `jvp` whose `ops` has a default."""
    result = []
    for function in functions(source):
        arguments = [*function.args.posonlyargs, *function.args.args]
        last = arguments[len(arguments) - len(function.args.defaults) :]
        keyword = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        optional = [*last, *(a for a, default in keyword if default is not None)]
        if function.name not in ("forward", "jvp") and "ops" in [a.arg for a in optional]:
            result.append(function.name)
    return result


@pytest.mark.parametrize("name", [*FILES, *DEMO_FILES])
def test_a_function_fits_on_one_screen(name):
    assert not too_long(SOURCES[name], is_demo=name in DEMO_FILES)


@pytest.mark.parametrize("name", [*FILES, *DEMO_FILES])
def test_no_function_takes_arguments_only_to_drop_them(name):
    assert not swallowing(SOURCES[name])


def test_a_part_of_a_network_is_told_its_ops():
    # With a default, two pairs of mixed ops ran and gave wrong numbers.
    assert not [function for name in FILES for function in with_default_ops(SOURCES[name])]


def test_one_function_of_the_package_is_called_gradient():
    named = [name for name in FILES for f in functions(SOURCES[name]) if f.name == "gradient"]
    assert named == ["npdiff.train"]


def test_train_has_at_most_10_parameters():
    assert len(inspect.signature(train).parameters) <= 10


@pytest.mark.parametrize("folder", ["npdiff", "demos", "tests"])
def test_lines_have_at_most_100_columns(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        lines = path.read_text("utf-8").splitlines()
        assert max(map(len, lines), default=0) <= 100, path


def test_a_planted_function_is_seen():
    long = "def f(x):\n" + '    """Two\n    lines."""\n' + "    x += 1\n" * 40
    assert too_long(long) == ["f has 41 lines"]
    assert not too_long(long.replace("    x += 1\n", "", 1))
    main = long.replace("def f", "def main")
    assert too_long(main) == ["main has 41 lines"] and not too_long(main, is_demo=True)
    assert swallowing("def f(x, *_: str): pass\ndef g(**_): pass\ndef h(*args): pass") == ["f", "g"]
    assert with_default_ops("def block_forward(x, ops=conv): pass") == ["block_forward"]
    assert with_default_ops("def block_forward(x, *, ops=conv): pass") == ["block_forward"]
    assert not with_default_ops("def forward(x, ops=conv): pass\ndef f(x, ops, y=1): pass")


# Frames: how much a debugger shows between an equation and its line


def frames(f: Callable[[], object]) -> list[str]:
    """The functions of the package that f() enters, in order."""
    entered = []

    def look(frame: types.FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            entered.append(frame.f_code.co_name)

    sys.setprofile(look)
    try:
        f()
    finally:
        sys.setprofile(None)
    return entered


def second_step(make: Callable) -> Callable[[], object]:
    """A call that takes one step of a sampler with a trivial predictor, after its first."""
    steps = make(lambda x_t, t: x_t, np.ones((4, 2)), schedule.cosine(20))
    next(steps)
    return lambda: next(steps)


def ddpm(predict_eps: Callable, x_T: np.ndarray, s: schedule.Schedule) -> Iterator:
    return sampler.ddpm(predict_eps, x_T, s, np.random.default_rng(0))


def ddim(predict_eps: Callable, x_T: np.ndarray, s: schedule.Schedule) -> Iterator:
    return sampler.ddim(predict_eps, x_T, s, 10, 0.5, np.random.default_rng(0))


def test_few_frames_lie_between_an_equation_and_its_line():
    x, t, s = np.ones((4, 2)), np.array([1, 5, 9, 20]), schedule.cosine(20)
    assert len(frames(lambda: forward.q_sample(x, t, x, s))) <= 4
    assert len(frames(lambda: forward.q_posterior(x, x, t, s))) <= 4
    assert len(frames(second_step(ddpm))) <= 12
    deterministic = second_step(lambda *a: sampler.ddim(*a, 10))
    assert len(frames(deterministic)) <= 7


def test_frames_are_counted():
    def f():
        schedule.check_t(1, 10)
        schedule.linear(5)

    assert frames(f)[:3] == ["check_t", "linear", "check_T"]
    assert frames(second_step(ddpm))[0] == "ddpm" and frames(second_step(ddim))[0] == "ddim"


# What an import costs


def python(*lines: str) -> str:
    """The output of a fresh interpreter."""
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_book_imports_neither_cupy_nor_pillow_nor_torch():
    lines = ["import sys, npdiff", *(f"import {name}" for name in BOOK), "print(*sys.modules)"]
    loaded = set(python(*lines).split())
    assert set(BOOK) <= loaded
    assert not {"cupy", "PIL", "torch", "scipy", "npdiff.papers", "npdiff.fast"} & loaded


def test_importing_the_book_costs_little_more_than_importing_numpy():
    # The best of three fresh interpreters, against a busy machine.
    book = [f"import {name}" for name in BOOK]
    lines = ["import time, numpy", "start = time.perf_counter()", *book]
    seconds = [float(python(*lines, "print(time.perf_counter() - start)")) for _ in range(3)]
    assert min(seconds) < 0.2
