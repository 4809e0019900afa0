"""The command `bakeoff-report`: a study's report from the MLflow store, without training."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.table import Table

from bakeoff.errors import UserError, fail, refused
from bakeoff.paths import ANALYSIS, study_names
from bakeoff.report.claims import claims_table, claims_verdict, verdicts
from bakeoff.report.matching import mismatches
from bakeoff.report.page import Page, all_claims, page_of
from bakeoff.report.render import execute, figures, to_html
from bakeoff.report.store import default_tracking, load_study
from bakeoff.report.study import Study, write_study
from bakeoff.report.tables import as_text, markdown
from bakeoff.tracking import open_store

CLAIMS = "claims"  # the page that is made from all studies
KERNELS = 2  # notebooks that run at once


def main() -> None:
    """Parses the arguments, writes the reports, prints their tables and paths; exit code 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="bakeoff-report", description=__doc__)
    parser.add_argument(
        "study", nargs="?", default="methods", help="a study of sweeps/, or `claims` (default: methods)"
    )
    parser.add_argument("--all", action="store_true", help="every study of sweeps/ that the store holds")
    parser.add_argument("--where", default="", help="""select runs, such as "seed < 3 and algorithm != 'trpo'" """)
    parser.add_argument(
        "--sweeps", type=int, default=1, help="number of the study's newest sweeps to read as one (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder of the reports (default: reports)")
    arguments = parser.parse_args()
    console = Console()
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # matplotlib writes it into figures in place of today's date
    try:
        if arguments.sweeps < 1:
            raise UserError(f"--sweeps is {arguments.sweeps}; it must be at least 1.")
        if arguments.study not in (names := [*study_names(), CLAIMS]):
            raise UserError(f"there is no study '{arguments.study}' in sweeps/; the studies are {', '.join(names)}.")
        with refused(), console.status("reading the store, running notebooks"):
            if arguments.all:
                report_all(arguments.out, arguments.where, console)
            elif arguments.study == CLAIMS:
                held = held_studies(sorted({study for study, _ in all_claims()}), "", console)
                if not report_claims(held, arguments.out, console):
                    raise UserError("the store holds no study that tests a claim; `make claims` makes them all.")
            else:
                page = page_of(arguments.study)  # first: a missing file is found before the store is read
                study = load_study(arguments.study, where=arguments.where, sweeps=arguments.sweeps)
                report(page, study, arguments.out, console)
    except UserError as error:
        fail(error, "bakeoff-report")


def report_all(out: Path, where: str, console: Console) -> None:
    """The page of every study that the store holds, and the page of claims unless `where` selects runs."""
    held = held_studies(study_names(), where, console)
    if not held:
        raise UserError("the store holds no study; `bakeoff sweeps=methods` makes the first one.")
    pages = [page_of(study.name) for study in held]
    with ThreadPoolExecutor(KERNELS) as pool:
        list(pool.map(lambda page, study: report(page, study, out, console), pages, held))
    if not where:  # a claim is about all runs of a study
        report_claims(held, out, console)


def held_studies(names: Iterable[str], where: str, console: Console) -> list[Study]:
    """The studies with a finished run in the store; prints the command that makes each of the others."""
    held = []
    for name in names:
        try:
            held.append(load_study(name, where=where))
        except UserError as error:
            console.print(f"[dim]{error}[/]", highlight=False)
    return held


def report(page: Page, study: Study, out: Path, console: Console) -> None:
    """Writes <out>/<study>.html, its table as <study>.md, and frames and figures to <out>/<study>/; prints the answer.

    All of it becomes an artifact of the sweep's run. The same store gives the same bytes.
    """
    name = study.name
    folder = empty_folder(out / name)
    write_study(study, folder)
    table = page.table(study)
    (out / f"{name}.md").write_text(markdown(table), encoding="utf-8")
    html = write_page(name, page.notebook, folder)
    client, _ = open_store(default_tracking())
    try:
        for each in (html, out / f"{name}.md"):
            client.log_artifact(study.run, str(each), "report")
        client.log_artifacts(study.run, str(folder), f"report/{name}")
    except (MlflowException, OSError):
        console.print("The report is only here: the store's artifacts cannot be written from this machine.")
    console.print(terminal_table(table, study.question))
    warnings = [f"[red]not matched:[/] {each}" for each in mismatches(study)]
    parts = [*warnings, page.verdict(study), f"report: {html.resolve()}"]
    console.print(*parts, sep="\n", highlight=False, soft_wrap=True)


def report_claims(held: list[Study], out: Path, console: Console) -> bool:
    """Writes <out>/claims.html, claims.md, and frame and figure to <out>/claims/; false if no claim is tested."""
    table = verdicts(held)
    if table["value"].isna().all():
        return False
    folder = empty_folder(out / CLAIMS)
    table.to_csv(folder / "claims.csv", index=False)
    (out / f"{CLAIMS}.md").write_text(markdown(claims_table(table)), encoding="utf-8")
    html = write_page(CLAIMS, ANALYSIS / f"{CLAIMS}.ipynb", folder)
    console.print(claims_verdict(table), f"report: {html.resolve()}", sep="\n", highlight=False, soft_wrap=True)
    return True


def empty_folder(folder: Path) -> Path:
    """The folder, made or emptied."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def write_page(name: str, notebook: Path, folder: Path) -> Path:
    """Runs a notebook on a folder of frames; writes its figures to the folder and its page beside it."""
    book = execute(notebook, folder)
    for figure, content in figures(book):
        (folder / figure).write_bytes(content)
    page = folder.parent / f"{name}.html"
    page.write_text(to_html(book, f"bakeoff: {name}"), encoding="utf-8")
    return page


def terminal_table(frame: pd.DataFrame, title: str) -> Table:
    """A frame for the terminal, whose names are never cut off."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in frame:
        table.add_column(str(column), overflow="fold")
    for _, row in as_text(frame).iterrows():
        table.add_row(*map(str, row))
    return table


if __name__ == "__main__":
    main()
