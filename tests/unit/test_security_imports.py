"""H1: what must appear nowhere in product code. Read from the syntax tree, so that words in comments do not count."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ROOMS = ("platform", "inference", "serinus")
FILES = sorted(path for room in ROOMS for path in (REPO / room).rglob("*.py"))
NOWHERE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NOT_IN_CONTROL = {"torch", "jax", "jaxlib", "transformers", "onnxruntime", "numpy", "tokenizers"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("os", "system"), ("os", "popen"), ("yaml", "load"), ("yaml", "unsafe_load"), ("torch", "package")}
METHODS = {"extractall", "recv_pyobj", "send_pyobj"}
FLAGS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(module: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def calls(module: ast.Module) -> list[str]:
    """Forbidden calls, as text."""
    found = []
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in CALLS:
            found.append(function.id)
        if isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            if (owner, function.attr) in ATTRIBUTES or function.attr in METHODS:
                found.append(f"{owner}.{function.attr}")
        flags = [(flag.arg, flag.value.value) for flag in node.keywords if isinstance(flag.value, ast.Constant)]
        found += [f"{name}={value}" for name, value in flags if (name, value) in FLAGS]
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 300
    assert any(name_of(path).startswith("platform/") for path in FILES)


def test_no_pickle_and_no_code_from_text() -> None:
    found = {}
    for path in FILES:
        module = tree(path)
        found[name_of(path)] = [*(tops(imported(module)) & NOWHERE), *calls(module)]
    assert {name: what for name, what in found.items() if what} == {}


def test_the_control_plane_never_imports_a_framework() -> None:
    ours = [path for path in FILES if name_of(path).startswith("platform/")]
    found = {name_of(path): tops(imported(tree(path))) & NOT_IN_CONTROL for path in ours}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import pickle", {"pickle"}),
        ("from torch import nn", {"torch"}),
        ("def f():\n    import joblib.x", {"joblib"}),
        ("from . import pickle_free", set()),
    ],
)
def test_the_lint_sees_imports(source: str, seen: set[str]) -> None:
    assert tops(imported(ast.parse(source))) == seen


@pytest.mark.parametrize(
    "source",
    ["eval('1')", "os.system('ls')", "z.extractall()", "run(x, shell=True)", "load(f, weights_only=False)"],
)
def test_the_lint_sees_calls(source: str) -> None:
    assert calls(ast.parse(source))


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('x')", "load(f, weights_only=True)", "# eval(x)"])
def test_the_lint_lets_harmless_calls_be(source: str) -> None:
    assert not calls(ast.parse(source))
