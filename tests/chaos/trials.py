"""What every section shares: a small run, its commands, and what survival is."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pandas as pd
from mlflow import MlflowClient

from bakeoff.measure import NOT_REPRODUCIBLE
from bakeoff.report.store import metrics_frame
from tests.commands import PATIENCE_S, call, changed_update, start, store_of
from tests.stored import client_of, named

SMALL = (
    *("model=tiny", "task.digits=2", "task.max_new_tokens=6", "task.heldout=16", "evaluation.final=0"),
    *("sft.steps=20", "sft.batch=16", "sft.accuracy=0"),
    *("batch.prompts=4", "batch.group_size=4", "budget.unit=updates", "budget.limit=6", "checkpoint.every=2"),
    *("measure.memory_prediction=false", "threads=1", "++model.architecture.num_hidden_layers=1"),
)
MINIBATCHES = ("algorithm.optimizer.minibatches=2", "algorithm.critic.optimizer.minibatches=1")
RUN = (*SMALL, "algorithm=ppo", *MINIBATCHES, "hydra.run.dir=out")
Result = CompletedProcess[str]


@dataclass
class Trial:
    """An attack and what it did.

    kind    of attack: a row of the table
    name    of this one
    fault   why the product did not survive it, or empty
    """

    kind: str
    name: str
    fault: str = ""


class Attack(NamedTuple):
    """An attack that has not been tried: `perform` raises AssertionError where the product does not survive."""

    kind: str
    name: str
    perform: Callable[[], None]


def tried(attacks: Sequence[Attack], draw: Random, scale: float = 1.0) -> Iterator[Trial]:
    """Tries a share of the attacks, two at a time."""

    def one(attack: Attack) -> Trial:
        try:
            attack.perform()
        except Exception as error:  # one that breaks the trial itself is no survival either
            return Trial(attack.kind, attack.name, f"{type(error).__name__}: {error}")
        return Trial(attack.kind, attack.name)

    chosen = draw.sample(range(len(attacks)), max(1, round(scale * len(attacks))))
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(one, [attacks[number] for number in sorted(chosen)])


def place(folder: Path) -> Path:
    """A working folder with an empty store."""
    folder.mkdir(parents=True)
    store_of(folder)
    return folder


def undisturbed_run(folder: Path) -> Path:
    """The working folder in which RUN has finished undisturbed, made once."""
    if not (folder / "run").exists():
        finished(place(folder / "run"), *RUN)
    return folder / "run"


def bakeoff(cwd: Path, *arguments: str, before: Iterable[Callable[[], None]] = (), module: str = "__main__") -> Result:
    """Runs the command to its end; what every command must show, however it ends, is asserted."""
    result = call(f"bakeoff.{module}", arguments, cwd, *before)
    sound(result)
    return result


def sound(result: Result) -> None:
    """Asserts that a command ended as intended, or by a signal: without a traceback, and with few words."""
    said = f"exit code {result.returncode}: {result.stderr[-1500:]}"
    assert "Traceback" not in result.stdout + result.stderr, said
    assert "secret" not in result.stdout + result.stderr, f"a password was printed; {said}"
    assert result.returncode in (0, 2, 130, 143, -2, -9, -15), said
    lines = [line for line in result.stderr.splitlines() if line.startswith("bakeoff: ")]
    lines = [line for line in lines if "To send them" not in line]
    assert result.returncode != 2 or len(lines) == 1, f"not one sentence; {said}"


def finished(cwd: Path, *arguments: str, **how: Any) -> Result:
    """Runs the command, which must finish."""
    result = bakeoff(cwd, *arguments, **how)
    assert result.returncode == 0, result.stderr[-1500:]
    return result


def resumed(cwd: Path, *arguments: str, folder: str = "out") -> Result:
    """Resumes the run of a folder, or starts it where it had not begun, to its end."""
    begun = (cwd / folder / "run.json").exists()
    return finished(cwd, *((f"resume={folder}",) if begun else arguments))


def curves(store: Path | MlflowClient) -> dict[tuple[str, str], pd.Series]:
    """The curves of every job in a store, which a folder may hold, by algorithm and seed: metric by name and step.

    Asserts that each finished once, and that runs which did not were killed before they logged anything.
    """
    client = client_of(store) if isinstance(store, Path) else store
    runs = client.search_runs([client.get_experiment_by_name("bakeoff").experiment_id])
    jobs = [run for run in runs if run.data.tags.get("kind") != "sweep"]
    ended = [run for run in jobs if run.info.status == "FINISHED"]
    found: dict[tuple[str, str], pd.Series] = {}
    for run in ended:
        job = (run.data.tags["algorithm"], run.data.tags["seed"])
        assert job not in found, f"{job} finished twice"
        frame = metrics_frame(client, [run], named(run)).astype({"metric": str})
        frame = frame[~frame["metric"].str.startswith(NOT_REPRODUCIBLE)]
        found[job] = frame.set_index(["metric", "step"])["value"].sort_index()
    others = [run for run in jobs if run not in ended and run.data.metrics]
    assert not others, f"{len(others)} runs have metrics but did not finish"
    return found


def equal(store: Path | MlflowClient, undisturbed: Path) -> None:
    """Asserts that the jobs of two stores have the same curves, bit for bit."""
    found, expected = curves(store), curves(undisturbed)
    assert found.keys() == expected.keys(), f"finished: {sorted(found)}, expected: {sorted(expected)}"
    for job in expected:
        pd.testing.assert_series_equal(found[job], expected[job], check_exact=True)


def waits_in_update(number: int, folder: Path) -> None:
    """Makes the process wait at the start of an update, counted from 1, until there is a file `go_N` in the folder.

    A file `waits_N` says that it waits.
    """

    def wait() -> None:
        (folder / f"waits_{number}").touch()
        while not (folder / f"go_{number}").exists():
            time.sleep(0.05)

    changed_update(number, wait)


@dataclass
class Waiting:
    """A command that waits at the start of some of its updates."""

    cwd: Path
    process: Any
    output: Path

    def reaches(self, number: int) -> None:
        """Waits until it is there."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.cwd / f"waits_{number}").exists():
            assert self.process.exitcode is None, f"it ended before update {number}: {self.result()}"
            assert time.monotonic() < deadline, f"it did not reach update {number}"
            time.sleep(0.05)

    def go(self, number: int) -> None:
        """Lets it go on."""
        (self.cwd / f"go_{number}").touch()

    def end(self) -> Result:
        """Waits for its end; asserts that it is sound."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, "it does not end"
        sound(self.result())
        return self.result()

    def result(self) -> Result:
        return Result((), self.process.exitcode, *((self.output / n).read_text() for n in ("stdout", "stderr")))


@contextmanager
def waiting(cwd: Path, *arguments: str, updates: Iterable[int] = (3,)) -> Iterator[Waiting]:
    """Starts a command that waits in these updates, the first of which it reaches."""
    with tempfile.TemporaryDirectory() as folder:
        stops = [partial(waits_in_update, number, cwd) for number in updates]
        command = Waiting(cwd, start("bakeoff.__main__", arguments, cwd, Path(folder), *stops), Path(folder))
        try:
            command.reaches(next(iter(updates)))
            yield command
        finally:
            command.process.kill()
            command.process.join()


def table(section: str, trials: list[Trial]) -> str:
    """Rows of a Markdown table: section, kind of attack, number tried, number survived."""
    rows = []
    for kind in dict.fromkeys(trial.kind for trial in trials):
        of_kind = [trial for trial in trials if trial.kind == kind]
        rows.append(f"| {section} | {kind} | {len(of_kind)} | {sum(not trial.fault for trial in of_kind)} |")
    return "\n".join(rows)


def one_line(text: str) -> str:
    """Text without line ends, for a report."""
    return re.sub(r"\s+", " ", text)[:1200]
