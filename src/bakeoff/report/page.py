"""The page of a study, found by the study's name: sweeps/X.yaml, analysis/X.ipynb, and the code pages/X.py.

The code has `table(study)`, a frame, and `verdict(study)`, the answer in sentences. It may have `TABLES`, functions of
further frames by their titles, `CLAIMS`, the claims that the study tests, `families(study)`, the comparisons that it
decides together, `MEASURE`, their metric, and `NOTEBOOK`, the name of another study whose notebook it shares. A user's
files stand in the user's folder; the pages of the shipped studies are in this package.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pandas as pd

from bakeoff.errors import UserError, first_line
from bakeoff.paths import PAGES, page_file, study_file, study_folders, study_names
from bakeoff.report.claim import Claim
from bakeoff.report.idle import idle
from bakeoff.report.matching import mismatches
from bakeoff.report.naming import shortened
from bakeoff.report.setup import setup_html
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import in_html, not_scored, percent

GENERIC = "methods"  # compares the arms of any study
MOST = 20  # sentences of a kind of warning on a page
FEW = 128  # held-out prompts


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
    own = study_file("analysis", f"{study}.ipynb") if study in study_names() else None
    name = f"{getattr(code, 'NOTEBOOK', GENERIC if has_generic_page(study) else study)}.ipynb"
    notebook = (own if has_generic_page(study) else None) or study_file("analysis", name)
    if notebook is None:
        raise UserError(f"the study '{study}' has no notebook: {study_folders()[0] / 'analysis' / name} is missing.")
    return Page(code, notebook, code.table, code.verdict)


def page_code(study: str) -> ModuleType:
    """The module pages/STUDY.py, the user's or ours; raises UserError where it fails.

    Code is found by the name of a study alone, never by another text, such as a path in a store. A study without code
    of its own, and one that has no file here, has the page of `methods`.
    """
    path = page_file(study) if study in study_names() else None
    if path is None:
        return importlib.import_module(f"bakeoff.report.pages.{GENERIC}")
    if path.parent == PAGES:
        return importlib.import_module(f"bakeoff.report.pages.{study}")
    loader = SourceFileLoader(f"page_{study}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = str(path)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be imported ({explained(error)}).") from error
    return module


def has_generic_page(study: str) -> bool:
    """Whether the page of a study is that of `methods`, because there is no code for it."""
    return study not in study_names() or page_file(study) is None


def all_claims() -> list[tuple[str, Claim]]:
    """Every claim of every page, and the study that tests it, in the order of their steps; without a number last.

    A page that cannot be imported has none.
    """

    def step(claim: Claim) -> float:
        found = re.match(r"\d+", claim.step)
        return float(found[0]) if found else math.inf

    claims: list[tuple[str, Claim]] = []
    for study in (each for each in study_names() if not has_generic_page(each)):
        with suppress(UserError):
            claims += [(study, claim) for claim in getattr(page_code(study), "CLAIMS", [])]
    return sorted(claims, key=lambda each: step(each[1]))


def explained(error: BaseException) -> str:
    """An error of a page's code in a few words: its type and its first line."""
    return f"{type(error).__name__}: {first_line(error)}"


def answer(page: Page, study: Study) -> str:
    """The page's verdict; where it cannot be computed, as from a store that lacks an arm, a sentence that says so."""
    try:
        return str(page.verdict(study))
    except Exception as error:
        return f"These runs give no answer ({explained(error)})."


def warnings(study: Study) -> dict[str, list[str]]:
    """What a reader must know before the answer, by kind: not matched, few prompts, idle, not scored, left out."""
    shares = [f"{percent(share)} of {name}'s completions" for name, share in not_scored(study).items()]
    found = {"Not matched": mismatches(study), "Few prompts": few_prompts(study), "Idle": idle(study)}
    found |= {"Not scored": shares, "Left out": study.left_out}
    return {kind: shortened(each, MOST) for kind, each in found.items() if each}


def few_prompts(study: Study) -> list[str]:
    """A sentence where the final accuracies are of fewer than FEW held-out prompts."""
    step = study.step(ACCURACY)
    if step * FEW <= 1:
        return []
    return [
        f"the last evaluation has {round(1 / step)} held-out prompts, the same for all seeds: on other prompts of the "
        f"task an accuracy may differ by ±{1.96 * math.sqrt(0.25 * step):.2g} (95 %), beyond the intervals over seeds; "
        "raise task.heldout"
    ]


def heading(page: Page, study: Study) -> str:
    """The top of a page as HTML, which is Markdown too: the question, the answer, the warnings and the set-up."""
    parts = [f"<h1>{in_html(study.name)}</h1>", f"<p><em>{in_html(study.question)}</em></p>"]
    parts += [f"<p>{in_html(each)}</p>" for each in answer(page, study).split("\n\n")]
    for kind, sentences in warnings(study).items():
        items = "".join(f"<li>{in_html(each)}</li>" for each in sentences)
        parts.append(f"<div><strong>{kind}:</strong><ul>{items}</ul></div>")
    return "\n".join([*parts, setup_html(study)])
