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
from bakeoff.report.render import execute, to_html
from bakeoff.report.study import Study, load_study, mismatches
from bakeoff.report.tables import comparison, league_markdown, verdict
from bakeoff.tracking import Tracker, open_store


def main() -> None:
    """Parses the arguments, writes the report, prints its table and its path; exit code 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="bakeoff-report", description=__doc__)
    parser.add_argument("study", nargs="?", default="methods", help="a study of sweeps/ (default: methods)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder of the reports (default: reports)")
    arguments = parser.parse_args()
    console = Console()
    try:
        path = report(arguments.study, arguments.out, console)
    except UserError as error:
        fail(error, "bakeoff-report")
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


def report(name: str, out: Path, console: Console) -> Path:
    """Writes <out>/<name>.html and, as <name>.md, its table; logs both to the sweep's run; returns the page."""
    if not (SWEEPS / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in SWEEPS.glob("*.yaml") if path.stem != "none"))
        raise UserError(f"the study is {name!r}, which is not in sweeps/; it may be {known}.")
    study = load_study(name)
    notebook = ANALYSIS / f"{study.notebook}.ipynb"
    os.environ["MLFLOW_TRACKING_URI"] = study.tracking.uri
    with console.status(f"{notebook.name}: starting") as status:
        book = execute(notebook, {"study_name": name}, lambda message: status.update(f"{notebook.name}: {message}"))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.html"
    path.write_text(to_html(book, f"bakeoff: {name}"), encoding="utf-8")
    table = out / f"{name}.md"
    table.write_text(league_markdown(study) if study.trained else peaks_markdown(study), encoding="utf-8")
    tracker = Tracker(open_store(study.tracking)[0], study.run_id)
    for each in (path, table):
        tracker.artifact(each, "report")
    show(study, console)
    return path.resolve()


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
