"""Imports go one way: a package imports only from those before it. The maths imports only torch."""

import ast
import re
from pathlib import Path

import pytest

import bakeoff

ROOT = Path(bakeoff.__file__).parent
ORDER = [
    {"nearest", "signals"},
    {"errors", "randomness", "rows", "ranges", "standin", "terminal"},
    {"paths", "files", "regime", "overrides"},
    {"arguments", "outbox"},
    {"mlflow_store", "device", "arms", "user_code"},
    {"ui"},
    {"tracking"},
    {"processes"},
    {"batch", "attribution"},
    {"measure"},
    {"hardware"},
    {"algorithm"},
    {"task"},
    {"model"},
    {"engine", "reward"},
    {"config", "collector"},
    {"validation", "configuration", "identity"},
    {"early"},
    {"learner"},
    {"loop", "imagined"},
    {"heldout"},
    {"start", "metrics", "quality"},
    {"progress", "predict"},
    {"folder", "cost", "savings", "launcher", "watch"},
    {"run", "job_folders", "outcome", "elastic"},
    {"sweep"},
    {"modes"},
    {"job"},
    {"reward_model", "resume", "init"},
    {"command", "guide"},
    {"__main__", "evaluate"},
    {"predict_command", "tune"},
    {"report"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" if node.module == "bakeoff" else str(node.module) for a in node.names}
    return found


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if package(path) in LEVEL]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_left(path):
    for name in imports(path):
        if name.startswith("bakeoff.") and (other := name.split(".")[1]) != package(path):
            assert LEVEL[other] < LEVEL[package(path)], f"{package(path)} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "report").rglob("*.py")), ids=lambda p: p.name)
def test_a_report_reads_the_store_and_waits_for_no_torch(path):
    names = ("arguments", "attribution", "errors", "files", "measure", "nearest", "paths", "regime", "terminal")
    allowed = {f"bakeoff.{name}" for name in (*names, "mlflow_store")}
    own = {name for name in imports(path) if name.startswith("bakeoff.") and not name.startswith("bakeoff.report")}
    assert own <= allowed
    assert "torch" not in imports(path)


@pytest.mark.parametrize("path", sorted((ROOT / "algorithm").glob("*.py")), ids=lambda p: p.name)
def test_the_maths_imports_only_torch(path):
    allowed = (
        "torch",
        "bakeoff.algorithm",
        "bakeoff.batch",
        "bakeoff.rows",
        "bakeoff.ranges",
        "dataclasses",
        "enum",
        "typing",
        "collections",
        "__future__",
    )
    if path.name == "__init__.py":
        allowed += ("omegaconf",)
    assert all(name.startswith(allowed) for name in imports(path))


WITHOUT_DEVICES = [path for path in SOURCES if package(path) not in ("device", "measure")]
BENCHMARKS = sorted((ROOT.parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", WITHOUT_DEVICES + BENCHMARKS, ids=lambda p: "/".join(p.parts[-2:]))
def test_only_the_device_module_and_measure_name_a_kind_of_device(path):
    tree = ast.parse(path.read_text())
    names = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [name for name in names if re.search(r"\b(cpu|cuda|mps|xpu)\b", name)] == []


def test_every_module_has_a_place_in_the_order():
    assert {package(p) for p in ROOT.rglob("*.py")} - set(LEVEL) == {"__init__"}
