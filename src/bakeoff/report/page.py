"""The page of a study, found by the study's name: sweeps/X.yaml, analysis/X.ipynb, and the code pages/X.py.

The code has `table(study)`, a frame, and `verdict(study)`, the answer in sentences. It may have `CLAIMS`, the claims
that the study tests, and `NOTEBOOK`, the name of another study whose notebook it shares. A user's files stand in the
user's folder; the pages of the shipped studies are in this package.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pandas as pd

from bakeoff.errors import UserError
from bakeoff.paths import PAGES, page_file, study_file, study_folders, study_names
from bakeoff.report.claim import Claim
from bakeoff.report.matching import mismatches
from bakeoff.report.study import Study


@dataclass(frozen=True)
class Page:
    """A study's page: its code, and the functions that the report calls."""

    code: ModuleType
    notebook: Path
    table: Callable[[Study], pd.DataFrame]
    verdict: Callable[[Study], str]


def page_of(study: str) -> Page:
    """The page of a study; raises UserError that names the file or the function that is missing."""
    code = page_code(study)
    for function in ("table", "verdict"):
        if not callable(getattr(code, function, None)):
            raise UserError(f"{code.__file__} has no function {function}(study); the report of '{study}' needs one.")
    name = f"{getattr(code, 'NOTEBOOK', study)}.ipynb"
    notebook = study_file("analysis", name)
    if notebook is None:
        raise UserError(f"the study '{study}' has no notebook: {study_folders()[0] / 'analysis' / name} is missing.")
    return Page(code, notebook, code.table, code.verdict)


def page_code(study: str) -> ModuleType:
    """The module pages/STUDY.py, the user's or ours; raises UserError where neither exists."""
    path = page_file(study)
    if path is None:
        expected = study_folders()[0] / "pages" / f"{study}.py"
        raise UserError(f"the study '{study}' has no page: {expected} is missing.")
    if path.parent == PAGES:
        return importlib.import_module(f"bakeoff.report.pages.{study}")
    loader = SourceFileLoader(f"page_{study}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = str(path)
    loader.exec_module(module)
    return module


def all_claims() -> list[tuple[str, Claim]]:
    """Every claim of every page, and the study that tests it, in the order of their steps; without a number last."""

    def step(claim: Claim) -> float:
        found = re.match(r"\d+", claim.step)
        return float(found[0]) if found else math.inf

    pages = [study for study in study_names() if page_file(study)]
    claims = [(study, claim) for study in pages for claim in getattr(page_code(study), "CLAIMS", [])]
    return sorted(claims, key=lambda each: step(each[1]))


def heading(page: Page, study: Study) -> str:
    """The top of a page in Markdown: the question, the answer, and a warning if the arms are not matched."""
    problems = "; ".join(mismatches(study))
    warning = f"\n\n**Not matched:** {problems}." if problems else ""
    return f"# {study.name}\n\n*{study.question}*\n\n{page.verdict(study)}{warning}"
