"""Docs and code say the same thing."""

import re

from bakeoff.algorithm import AXES
from bakeoff.measure.statistics import metrics_table
from bakeoff.paths import CONF, ROOT

DOCS = ROOT / "docs"


def test_the_metrics_page_is_the_code():
    assert (DOCS / "metrics.md").read_text() == metrics_table(), "run `make docs`"


def test_every_method_and_option_is_in_the_methods_page():
    page = (DOCS / "methods.md").read_text()
    for path in (CONF / "algorithm").glob("*.yaml"):
        assert f"`{path.stem}`" in page
    for axis, options in AXES.items():
        for option in options:
            assert f"`{axis}: {option}`" in page, f"{axis}: {option} has no row"


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make (\w+)`?", (ROOT / "README.md").read_text())) <= targets


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
