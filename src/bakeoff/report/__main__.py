"""The command `bakeoff-report`: a study's report from the MLflow store, without training."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bakeoff.errors import UserError, fail
from bakeoff.paths import ANALYSIS, SWEEPS
from bakeoff.report.memory import peaks_markdown
from bakeoff.report.render import execute, figures, to_html
from bakeoff.report.study import Study, load_study, mismatches
from bakeoff.report.tables import comparison, league_markdown, verdict
from bakeoff.tracking import Tracker, open_store


def main() -> None:
    """Parses the arguments, writes the reports, prints their tables and paths; exit code 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="bakeoff-report", description=__doc__)
    parser.add_argument("study", nargs="?", default="methods", help="a study of sweeps/ (default: methods)")
    parser.add_argument("--all", action="store_true", help="every study of sweeps/ that the store holds")
    parser.add_argument("--where", default="", help="""a choice of runs, such as "seed < 3 and algorithm != 'trpo'" """)
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder of the reports (default: reports)")
    arguments = parser.parse_args()
    console = Console()
    try:
        held = studies_held(arguments.where, console) if arguments.all else [known(arguments.study, arguments.where)]
        for study in held:
            path = report(study, arguments.out, arguments.where, console)
            console.print(f"report: {path}", highlight=False, soft_wrap=True)
    except UserError as error:
        fail(error, "bakeoff-report")


def studies() -> list[str]:
    """The studies of sweeps/."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml") if path.stem != "none")


def known(name: str, where: str) -> Study:
    """A study of sweeps/ as the store holds it; raises UserError where there is none."""
    if name not in studies():
        raise UserError(f"the study is {name!r}, which is not in sweeps/; it may be {', '.join(studies())}.")
    return load_study(name, where=where)


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


def report(study: Study, out: Path, where: str, console: Console) -> Path:
    """Writes <out>/<name>.html, its table as <name>.md, and figures and frames to <out>/<name>/; returns the page.

    All of it goes to the sweep's run too. The same store gives the same bytes.
    """
    name, notebook = study.name, ANALYSIS / f"{study.notebook}.ipynb"
    os.environ["MLFLOW_TRACKING_URI"] = study.tracking.uri
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # matplotlib writes it into figures in the place of today's date
    parameters = {"study_name": name, "where": where}
    with console.status(f"{notebook.name}: starting") as status:
        book = execute(notebook, parameters, lambda message: status.update(f"{notebook.name}: {message}"))
    page, table, folder = out / f"{name}.html", out / f"{name}.md", out / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    page.write_text(to_html(book, f"bakeoff: {name}"), encoding="utf-8")
    table.write_text(league_markdown(study) if study.trained else peaks_markdown(study), encoding="utf-8")
    for file, content in figures(book):
        (folder / file).write_bytes(content)
    study.runs.to_csv(folder / "runs.csv", index=False)
    study.params.to_csv(folder / "params.csv", index=False)
    study.metrics.to_parquet(folder / "metrics.parquet", index=False)
    tracker = Tracker(open_store(study.tracking)[0], study.run_id)
    for each in (page, table):
        tracker.artifact(each, "report")
    tracker.artifacts(folder, f"report/{name}")
    show(study, console)
    return page.resolve()


def show(study: Study, console: Console) -> None:
    """Prints the comparison, what is not matched, and what the data say; of a prediction, the peaks."""
    if not study.trained:
        console.print(peaks_markdown(study), highlight=False)
        return
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
        table.add_column(title, justify="left" if title == "method" else "right")
    for _, row in frame.iterrows():
        cells = [row[c] if isinstance(row[c], str) else f"{row[c]:.{digits.get(c, 3)}f}" for c in headers]
        table.add_row(*cells)
    console.print(table)
    for problem in mismatches(study):
        console.print(f"[red]unmatched:[/] {problem}", highlight=False)
    console.print(verdict(study), highlight=False)


if __name__ == "__main__":
    main()
