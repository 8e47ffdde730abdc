"""Ratchets: laws of the house that nothing else would notice being broken."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PRODUCT = [p for root in ("inference", "platform", "serinus") for p in (REPO / root).rglob("*.py")]
CODE = [p for p in PRODUCT if "migrations" not in p.parts]


def test_platform_is_no_package() -> None:
    """With an __init__.py it would shadow the standard library's module of that name."""
    assert not (REPO / "platform" / "__init__.py").exists()
    import platform

    assert platform.python_implementation() == "CPython"


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def without_docstring(files: list[Path]) -> list[str]:
    return [str(file) for file in files if not ast.get_docstring(tree(file))]


def test_every_room_states_its_law() -> None:
    assert without_docstring([p for p in CODE if p.name == "__init__.py"]) == []


def test_every_module_opens_with_a_docstring() -> None:
    assert without_docstring([p for p in CODE if p.name not in {"__init__.py", "apps.py"}]) == []


def test_files_stay_small() -> None:
    assert [str(file) for file in CODE if file.read_text().count("\n") > 600] == []


def test_functions_stay_small() -> None:
    large = []
    for file in CODE:
        for node in ast.walk(tree(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno + 1
                large += [f"{file}:{node.lineno} {node.name} has {size} lines"] if size > 60 else []
    assert large == []


def test_tests_are_folders_and_not_packages() -> None:
    assert not list((REPO / "tests").rglob("__init__.py"))


def test_every_setting_is_documented() -> None:
    documented = (REPO / "docs" / "configuration.md").read_text()
    used = set()
    for file in CODE:
        used |= set(re.findall(r"[\"'](SERINUS_[A-Z_]+)[\"']", file.read_text()))
    internal = {
        "SERINUS_ROLE",
        "SERINUS_STATIC_BUILD",
        "SERINUS_SECRET_KEY",
        "SERINUS_GATEWAY_URL",
        "SERINUS_CONSOLE_URL",
    }
    missing = {name for name in used - internal if name not in documented}
    assert not missing, f"not in docs/configuration.md: {sorted(missing)}"


def test_no_machine_path_is_written_down() -> None:
    for file in [*CODE, *REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")]:
        assert not re.search(r"(?<![\w.])/(work|farm)/", file.read_text()), file


def test_every_batching_setting_is_documented():
    from inference.protocol.settings import QueuePolicy, RuntimeSettings

    elsewhere = {
        "task",
        "labels",
        "response_cache_bytes",
        "decoupled",
        "sequence",
        "constants",
        "reshapes",  # docs/triton.md
        "warmup",
        "inputs",
        "outputs",
        "parameters",
    }
    page = (REPO / "docs" / "batching.md").read_text()
    names = {*RuntimeSettings.__struct_fields__, *QueuePolicy.__struct_fields__} - elsewhere
    assert not {name for name in names if f"`{name}`" not in page}


def test_every_metric_is_documented():
    from inference import metrics
    from inference.gateway.exposition_triton import _FAMILIES, FAILURE
    from inference.gateway.gpus import _FAMILIES as GPU

    page = (REPO / "docs" / "metrics.md").read_text()
    ours = {value for value in vars(metrics).values() if isinstance(value, str) and value.startswith("serinus_")}
    assert len(ours) > 10
    assert not {name for name in ours | {*_FAMILIES, *GPU, FAILURE} if f"`{name}`" not in page}
