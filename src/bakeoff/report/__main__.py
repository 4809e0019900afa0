"""The command `bakeoff-report`: a study's report from the MLflow store, without training."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pandas as pd
from mlflow.entities import Run
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bakeoff.arguments import add_config_dir, read_arguments
from bakeoff.errors import UserError, answering, redacted
from bakeoff.mlflow_store import open_store, store_uri
from bakeoff.nearest import did_you_mean, nearest
from bakeoff.paths import AD_HOC, ANALYSIS, study_names
from bakeoff.report.claims import claims_table, claims_verdict, verdicts
from bakeoff.report.detect import detect
from bakeoff.report.output import replaced
from bakeoff.report.page import Page, all_claims, answer, explained, page_of, warnings
from bakeoff.report.render import execute, faults, figures, to_html
from bakeoff.report.setup import commands, setup
from bakeoff.report.statistics import counted
from bakeoff.report.store import MOST, default_tracking, is_there, load_study
from bakeoff.report.study import Study, write_study
from bakeoff.report.tables import as_text, in_markdown, interval_note, markdown, per_seed
from bakeoff.terminal import Words

CLAIMS = "claims"  # the page that is made from all studies
KERNELS = 2  # notebooks that run at once


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, those of this process by default; raises UserError for a mistake in them."""
    parser = argparse.ArgumentParser(prog="bakeoff-report", description=__doc__)
    parser.add_argument(
        "study",
        nargs="?",
        default="",
        help=f"a study, `{AD_HOC}` for the newest sweep without one, or `{CLAIMS}`; default: lists the stored studies",
    )
    parser.add_argument("--latest", action="store_true", help="the newest sweep, whatever its study")
    parser.add_argument("--all", action="store_true", help="every study that the store holds")
    add_config_dir(parser)
    parser.add_argument("--where", default="", help="""select runs, such as "seed < 3 and algorithm != 'trpo'" """)
    parser.add_argument(
        "--sweeps", type=int, default=1, help="number of the study's newest sweeps to read as one (default: 1)"
    )
    parser.add_argument(
        "--detect",
        type=float,
        metavar="D",
        help="only print how many seeds detect a difference D in accuracy, and the command that adds them",
    )
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder of the reports (default: reports)")
    found = read_arguments(parser, arguments)
    if found.sweeps < 1:
        raise UserError(f"--sweeps is {found.sweeps}; it must be at least 1.")
    named = [found.study] * bool(found.study) + ["--latest"] * found.latest + ["--all"] * found.all
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} exclude each other; leave all but one out.")
    if found.sweeps > 1 and (found.all or found.study == CLAIMS):
        raise UserError(f"--sweeps is {found.sweeps}, which needs one study, but {named[0]} is of all; leave it out.")
    given = {"--where": found.where, "--sweeps": found.sweeps > 1, "--detect": found.detect is not None}
    if not named and any(given.values()):
        option = next(key for key in given if given[key])
        raise UserError(f"{option} needs a study; name one, as in `bakeoff-report methods`.")
    if found.detect is not None and (not 0 < found.detect < 1 or found.all or found.study == CLAIMS):
        raise UserError(f"--detect is {found.detect:g}; it takes one study and a number between 0 and 1.")
    if found.where and found.study == CLAIMS:
        raise UserError(f"--where is {found.where!r}, but a claim is about all runs of a study; leave it out.")
    return found


check = parse  # the rest is in the store: see early.py


def main() -> None:
    """Writes the reports, prints their tables and paths; exit code 2 for a user's mistake."""
    console = Console()
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # matplotlib writes it into figures in place of today's date
    with answering("bakeoff-report"):
        arguments = parse()
        if arguments.latest:
            arguments.study = next((name for name, _ in stored_sweeps()), "methods")
        if not (arguments.study or arguments.all):
            list_sweeps(console)
            return
        if arguments.study not in (names := [*study_names(), CLAIMS, ""]):
            held_names = list(dict.fromkeys(name for name, _ in stored_sweeps()))
            if arguments.study not in held_names:
                known = [*held_names, *names[:-2]]
                raise UserError(
                    f"there is no study '{arguments.study}' in the store ({', '.join(held_names) or 'it is empty'}), "
                    f"nor in sweeps/ ({', '.join(names[:-2])}){did_you_mean(nearest(arguments.study, known))}"
                )
        with console.status("reading the store, running notebooks"):
            if arguments.detect is not None:
                study = load_study(arguments.study, where=arguments.where, sweeps=arguments.sweeps)
                console.print(detect(study, arguments.detect), highlight=False, soft_wrap=True, markup=False)
            elif arguments.all:
                report_all(arguments.out, arguments.where, console)
            elif arguments.study == CLAIMS:
                held = held_studies(sorted({study for study, _ in all_claims()}), "", console)
                if not report_claims(held, arguments.out, console):
                    raise UserError("the store holds no study that tests a claim; `make claims` makes them all.")
            else:
                page = page_of(arguments.study)  # first: a missing file is found before the store is read
                study = load_study(arguments.study, where=arguments.where, sweeps=arguments.sweeps)
                report(page, study, arguments.out, console)


def stored_sweeps() -> list[tuple[str, Run]]:
    """Study and MLflow run of every sweep in the store, the newest first; names that no file can have are left out."""
    if not is_there(default_tracking()):
        return []
    client, experiment = open_store(default_tracking())
    newest_first = "attributes.start_time DESC"
    found = client.search_runs([experiment], "tags.kind = 'sweep'", order_by=[newest_first], max_results=MOST)
    named = [(run.data.tags.get("study", ""), run) for run in found]
    return [(name, run) for name, run in named if re.fullmatch(r"[\w-][\w.-]*", name)]


def empty() -> str:
    """Where a study was looked for and not found, and what to type."""
    tracking = default_tracking()
    found = "holds no study" if is_there(tracking) else "is not there"
    return (
        f"the store {redacted(store_uri(tracking))} {found}; change to the folder of your runs, or set "
        "MLFLOW_TRACKING_URI to their store; `bakeoff sweeps=methods` makes a first study here."
    )


def list_sweeps(console: Console) -> None:
    """Prints the studies in the store, with the command of each report; raises UserError if there are none."""
    sweeps = stored_sweeps()
    if not sweeps:
        raise UserError(empty())
    table = Words()
    for head in ("newest sweep", "sweeps", "its report"):
        table.add_column(head)
    numbers = Counter(name for name, _ in sweeps)
    for name in numbers:
        started = next(run.info.start_time for each, run in sweeps if each == name)
        day = datetime.fromtimestamp(started / 1000).strftime("%Y-%m-%d %H:%M")
        table.add_row(day, str(numbers[name]), Text(f"bakeoff-report {name}"))
    console.print(table)


def report_all(out: Path, where: str, console: Console) -> None:
    """The page of every study that the store holds, and the page of claims unless `where` selects runs.

    A page that fails does not stop the others. Raises UserError that names the pages that failed.
    """
    names = dict.fromkeys([*study_names(), *(name for name, _ in stored_sweeps())])
    held = held_studies(names, where, console)
    if not held:
        raise UserError(empty())

    def failure(study: Study) -> str:
        try:
            report(page_of(study.name), study, out, console)
        except Exception as error:  # a page is code of a user's
            return str(error) if isinstance(error, UserError) else f"{study.name}: {explained(error)}"
        return ""

    with ThreadPoolExecutor(KERNELS) as pool:
        failed = [each for each in pool.map(failure, held) if each]
    if not where:  # a claim is about all runs of a study
        report_claims(held, out, console)
    if failed:
        raise UserError(f"{counted(len(failed), 'page')} of {len(held)} failed: {' '.join(failed)}")


def held_studies(names: Iterable[str], where: str, console: Console) -> list[Study]:
    """The studies with a finished run in the store; prints the command that makes each of the others."""
    held = []
    for name in names:
        try:
            held.append(load_study(name, where=where))
        except UserError as error:
            console.print(str(error), style="dim", highlight=False, markup=False)
    return held


def report(page: Page, study: Study, out: Path, console: Console) -> None:
    """Writes <out>/<study>.html, its table as <study>.md, and frames and figures to <out>/<study>/; prints the answer.

    All of it becomes an artifact of the sweep's run. The same store gives the same bytes.
    """
    name, left_out = study.name, []
    try:
        table = as_text(page.table(study))
    except Exception as error:  # a store that lacks what the table is of, or code of a user's
        table = pd.DataFrame()
        left_out = [f"the table: these runs lack its data ({explained(error)})"]
    with replaced(out, name) as made:
        write_study(study, made / name)
        seeds = f"\nFinal held-out accuracy by seed:\n\n{markdown(per_seed(study))}" if study.trained else ""
        code = textwrap.indent(commands(study), "    ")  # which no backtick ends
        about = (in_markdown(interval_note(table)), code)
        notes = "\n".join(f"{each}\n" for each in about if each)
        further = further_tables(page, study)
        (made / f"{name}.md").write_text(f"{markdown(table)}\n{notes}{further}{seeds}", encoding="utf-8")
        left_out += write_page(name, page.notebook, made / name, commands(study))
        log_report(study, made, console)
    if len(table):
        console.print(terminal_table(table, study.question))
    found = warnings(study)
    found["Left out"] = found.get("Left out", []) + left_out
    for kind, sentences in found.items():
        for sentence in sentences:
            console.print(Text.assemble((f"{kind.lower()}: ", "red"), sentence), highlight=False, soft_wrap=True)
    parts = (answer(page, study), f"report: {(out / f'{name}.html').resolve()}")
    console.print(*parts, sep="\n", highlight=False, soft_wrap=True, markup=False)


def further_tables(page: Page, study: Study) -> str:
    """The page's TABLES as Markdown, each below its title; what these runs lack is left out, as on the page itself."""
    parts = []
    for title, of in getattr(page.code, "TABLES", {}).items():
        with suppress(Exception):  # a store that lacks what a table is of, or code of a user's
            if len(frame := of(study)):
                parts.append(f"\n## {title}\n\n{markdown(frame)}")
    return "".join(parts)


def log_report(study: Study, made: Path, console: Console) -> None:
    """Makes a report's files artifacts of the sweep's run, where the store takes them."""
    client, _ = open_store(default_tracking())
    try:
        client.log_artifacts(study.run, str(made), "report")
    except Exception:  # whatever the store is made of
        console.print("The report is on this machine alone, which cannot write the store's artifacts.")


def report_claims(held: list[Study], out: Path, console: Console) -> bool:
    """Writes <out>/claims.html, claims.md, and frame and figure to <out>/claims/; false if no claim is tested."""
    table = verdicts(held)
    if table["value"].isna().all():
        return False
    with replaced(out, CLAIMS) as made:
        table.to_csv(made / CLAIMS / "claims.csv", index=False)
        (made / f"{CLAIMS}.md").write_text(markdown(claims_table(table)), encoding="utf-8")
        conditions = pd.DataFrame([{"study": study.name, **setup(study)} for study in held]).fillna("–")
        conditions.to_csv(made / CLAIMS / "setup.csv", index=False)
        write_page(CLAIMS, ANALYSIS / f"{CLAIMS}.ipynb", made / CLAIMS, "make claims\nbakeoff-report claims")
    parts = (claims_verdict(table), f"report: {(out / f'{CLAIMS}.html').resolve()}")
    console.print(*parts, sep="\n", highlight=False, soft_wrap=True, markup=False)
    return True


def write_page(name: str, notebook: Path, folder: Path, command: str) -> list[str]:
    """Runs a notebook on a folder of frames; writes its figures to the folder and its page beside it.

    Returns a sentence on each part of the page that these frames do not give.
    """
    book = execute(notebook, folder)
    left_out = faults(book)
    for figure, content in figures(book):
        (folder / figure).write_bytes(content)
    (folder.parent / f"{name}.html").write_text(
        to_html(book, f"bakeoff: {name}", command, notebook.name), encoding="utf-8"
    )
    return left_out


def terminal_table(frame: pd.DataFrame, title: str) -> Table:
    """A frame of texts for the terminal, whose `[red]` is no markup."""
    table = Words(title)
    for column in frame:
        table.add_column(Text(str(column)))
    for _, row in frame.iterrows():
        table.add_row(*map(Text, row))
    return table


if __name__ == "__main__":
    main()
