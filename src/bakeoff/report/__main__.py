"""The command `bakeoff-report`: a study's report from the MLflow store, without training."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from mlflow.exceptions import MlflowException
from rich.console import Console, Group
from rich.markdown import Markdown
from rich.table import Table

from bakeoff.errors import UserError, fail
from bakeoff.paths import ANALYSIS, SWEEPS
from bakeoff.report.render import execute, figures, kernel, to_html
from bakeoff.report.study import Study, load_study, mismatches
from bakeoff.tracking import Tracker, open_store

CLAIMS = "claims"  # the page that is made of all studies


def main() -> None:
    """Parses the arguments, writes the reports, prints their tables and paths; exit code 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="bakeoff-report", description=__doc__)
    parser.add_argument(
        "study", nargs="?", default="methods", help="a study of sweeps/, or `claims` (default: methods)"
    )
    parser.add_argument("--all", action="store_true", help="every study of sweeps/ that the store holds")
    parser.add_argument("--where", default="", help="""a choice of runs, such as "seed < 3 and algorithm != 'trpo'" """)
    parser.add_argument(
        "--sweeps", type=int, default=1, help="so many of the study's newest sweeps as one (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder of the reports (default: reports)")
    arguments = parser.parse_args()
    console = Console()
    gc.set_threshold(100_000)  # MLflow makes many thousand objects of a large sweep, none of them garbage
    try:
        if arguments.sweeps < 1:
            raise UserError(f"--sweeps is {arguments.sweeps}; it must be at least 1.")
        if arguments.study not in (names := [*studies(), CLAIMS]):
            raise UserError(f"the study is {arguments.study!r}, which is not in sweeps/; it may be {', '.join(names)}.")
        os.environ["SOURCE_DATE_EPOCH"] = "0"  # matplotlib writes it into figures in the place of today's date
        with kernel() as manager:
            held = studies_held(arguments.where, console) if arguments.all else []
            if arguments.study != CLAIMS and not arguments.all:
                held = [load_study(arguments.study, where=arguments.where, sweeps=arguments.sweeps)]
            pages = Pages(arguments.out, manager, console)
            for study in held:
                report(study, pages)
            if arguments.study == CLAIMS or arguments.all:
                # A claim is about all runs of a study.
                report_claims(() if arguments.where else held, pages, required=not arguments.all)
    except UserError as error:
        fail(error, "bakeoff-report")
    finally:
        gc.freeze()  # Python looks through all objects before it ends, which takes two seconds


def studies() -> list[str]:
    """The studies of sweeps/."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml") if path.stem != "none")


def studies_held(where: str, console: Console) -> list[Study]:
    """The studies of which the store holds a finished run; says of the others how they are made."""
    held = []
    for name in studies():
        try:
            held.append(load_study(name, where=where))
        except UserError as error:
            console.print(f"[dim]{error}[/]", highlight=False)
    if not held:
        raise UserError("the store holds no study; `bakeoff sweeps=methods` makes the first one.")
    return held


@dataclass
class Pages:
    """Where pages are written, the kernel that runs their notebooks, and where it is told."""

    out: Path
    kernel: AsyncKernelManager
    console: Console

    def folder(self, name: str) -> Path:
        """The folder <out>/<name>/ of a page's figures and frames, emptied."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        return folder

    def write(self, name: str, notebook: str, parameters: dict[str, Any], folder: Path) -> Path:
        """Runs a notebook; returns its page <out>/<name>.html, and writes its figures to the folder."""
        file = ANALYSIS / f"{notebook}.ipynb"
        with self.console.status(f"{file.name}: starting") as status:
            book = execute(file, parameters, self.kernel, lambda message: status.update(f"{file.name}: {message}"))
        page = self.out / f"{name}.html"
        page.write_text(to_html(book, f"bakeoff: {name}"), encoding="utf-8")
        for figure, content in figures(book):
            (folder / figure).write_bytes(content)
        return page

    def say(self, page: Path) -> None:
        """Names the page."""
        self.console.print(f"report: {page.resolve()}", highlight=False, soft_wrap=True)


def report(study: Study, pages: Pages) -> None:
    """Writes <out>/<name>.html, its table as <name>.md, and figures and frames to <out>/<name>/; prints the table.

    All of it goes to the sweep's run too. The same store gives the same bytes.
    """
    name = study.name
    folder = pages.folder(name)
    with ThreadPoolExecutor(1) as beside:  # the notebook runs in the kernel's process, all else in this one
        own = replace(study)  # whose cached properties are not filled here while it is sent
        written = beside.submit(pages.write, name, study.notebook, {"study": own}, folder)
        from bakeoff.report.summary import study_table

        table = pages.out / f"{name}.md"
        table.write_text(study_table(study), encoding="utf-8")
        study.runs.to_csv(folder / "runs.csv", index=False)
        study.params.to_csv(folder / "params.csv", index=False)
        study.metrics.to_parquet(folder / "metrics.parquet", index=False)
        told = in_short(study)
        page = written.result()
    tracker = Tracker(open_store(study.tracking)[0], study.run_id)
    try:
        for each in (page, table):
            tracker.artifact(each, "report")
        tracker.artifacts(folder, f"report/{name}")
    except MlflowException:
        pages.console.print(
            "The store keeps artifacts behind a server: the report is only here, unless MLFLOW_TRACKING_URI names that."
        )
    pages.console.print(told, highlight=False)
    pages.say(page)


def report_claims(held: Iterable[Study], pages: Pages, required: bool) -> None:
    """The page of claims, from every study that tests one; beside it the table and the figure.

    Of a store that tests no claim it writes nothing, or raises UserError where the page is required.
    """
    from bakeoff.report.verdicts import claims_markdown, claims_verdict, verdicts

    table = verdicts(held=held)
    if not table["value"].notna().any():
        if required:
            raise UserError("the store holds no study that tests a claim; `make claims` makes them all.")
        return
    folder = pages.folder(CLAIMS)
    page = pages.write(CLAIMS, CLAIMS, {"table": table}, folder)
    (pages.out / f"{CLAIMS}.md").write_text(claims_markdown(table), encoding="utf-8")
    table.to_csv(folder / "claims.csv", index=False)
    pages.console.print(claims_verdict(table), highlight=False)
    pages.say(page)


def in_short(study: Study) -> Group:
    """The comparison, what is not matched, and what the data say; where nothing was trained, the table."""
    from bakeoff.report.summary import study_table, study_verdict
    from bakeoff.report.tables import comparison

    if not study.trained:
        return Group(Markdown(study_table(study)), study_verdict(study))
    frame = comparison(study)
    table = Table(title=study.question, title_justify="left", box=None, pad_edge=False)
    headers = {
        "method": "method",
        "start": "start",
        "held-out greedy": "held-out greedy",
        "interval": "95 % interval",
        "held-out sampled": "sampled",
        "KL to reference (nats/sequence)": "KL nats/seq",
        "training time (s)": "train s",
        "peak memory (MB)": "peak MB",
    }
    frame["interval"] = [f"[{low:.3f}, {high:.3f}]" for low, high in zip(frame["low"], frame["high"], strict=True)]
    digits = {"training time (s)": 0, "peak memory (MB)": 0, "KL to reference (nats/sequence)": 2}
    for title in headers.values():
        table.add_column(title, justify="left" if title == "method" else "right", overflow="fold")
    for _, row in frame.iterrows():
        cells = [row[c] if isinstance(row[c], str) else f"{row[c]:.{digits.get(c, 3)}f}" for c in headers]
        table.add_row(*cells)
    return Group(table, *(f"[red]unmatched:[/] {each}" for each in mismatches(study)), study_verdict(study))


if __name__ == "__main__":
    main()
