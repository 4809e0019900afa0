"""Docs and code say the same thing."""

import re
import shlex
import sys

import pytest

from bakeoff.algorithm import AXES
from bakeoff.config import register
from bakeoff.engine import ENGINES
from bakeoff.metrics import DEFINITIONS, definitions_table
from bakeoff.paths import CONF, ROOT
from bakeoff.reward.reward import REWARDS
from bakeoff.task import TASKS
from tests.conftest import compose, loop_of, update_of

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *DOCS.glob("*.md")]


def test_the_metrics_page_is_the_code():
    assert (DOCS / "metrics.md").read_text() == definitions_table(), "run `make docs`"


def test_every_method_and_option_is_in_the_methods_page():
    page = (DOCS / "methods.md").read_text()
    for path in (CONF / "algorithm").glob("*.yaml"):
        assert f"`{path.stem}`" in page
    for axis, options in AXES.items():
        for option in options:
            assert f"`{axis}: {option}`" in page, f"{axis}: {option} has no row"


def test_make_targets_of_every_page_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^ {4})make ([\w-]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, f"{page.name}: {named - targets}"


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f"(docs/{page.name}" in readme, page.name


def test_commands_of_the_published_page_compose():
    register()
    commands = re.findall(r"^    bakeoff-predict (.*)$", (DOCS / "published.md").read_text(), re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        compose("mode=predict", *shlex.split(command))


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.fixture
def registries():
    """Restores the registries, to which the examples add."""
    every = [*AXES.values(), TASKS, ENGINES, REWARDS, DEFINITIONS]
    before = [dict(registry) for registry in every]
    yield
    for registry, kept in zip(every, before, strict=True):
        registry.clear()
        registry.update(kept)


def test_every_example_of_the_extending_page_runs_and_trains(registries, tmp_path, monkeypatch):
    """Its code is executed in order; then every command of the page composes and takes an update."""
    page = (DOCS / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```") // 2 == 8
    for file, function in (("my_rewards.py", "brevity"), ("my_metrics.py", "words")):
        (tmp_path / file).write_text(next(block for block in blocks if f"def {function}" in block))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = sys.modules[__name__]
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), vars(module))
    register()
    small = ["tuned=none", "sft.steps=0", "task.heldout=4", "batch.prompts=2", "batch.group_size=2"]
    commands = re.findall(r"^    bakeoff (.*)$", page, re.MULTILINE)
    assert len(commands) == 9
    for command in commands:
        metrics = update_of(loop_of(compose(*small, *shlex.split(command))))
        assert metrics["progress/sequences"] == 4, command
    assert "policy/ratio_spread" in DEFINITIONS
