"""Runs and sweeps that are killed at random moments and resumed: their curves equal those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from tests.chaos.trials import (
    RUN,
    SMALL,
    Attack,
    Result,
    bakeoff,
    equal,
    finished,
    place,
    resumed,
    sound,
    undisturbed_run,
)
from tests.commands import PATIENCE_S, start

SWEEP = ("-m", *SMALL, "algorithm=grpo,rloo", "seed=1,2", "budget.limit=3", "hydra.sweep.dir=out")
RUNS, SWEEPS = 8, 2  # of each kind
Death = Callable[[Path, tuple[str, ...]], Result]
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
FILES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "sqlite3.connect")  # events of Python


def dies_at_file(number: int, folder: Path) -> None:
    """Makes the process kill itself before it opens, makes, renames or removes its n-th file below a folder."""
    left = [number]

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event in FILES and str(arguments[0]).startswith((str(folder), ".")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def killed(cwd: Path, arguments: tuple[str, ...], number: int, seconds: float) -> Result:
    """Starts a command, and sends its process group a signal some time after its folder appeared."""
    with tempfile.TemporaryDirectory() as folder:
        process = start("bakeoff.__main__", arguments, cwd, Path(folder), os.setsid)
        deadline = time.monotonic() + PATIENCE_S
        while not (cwd / "out").exists() and process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(seconds)
        if process.exitcode is None:
            os.killpg(process.pid, number)
        process.join(PATIENCE_S)
        assert process.exitcode is not None, "it does not end"
        texts = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        result = Result(arguments, process.exitcode, *texts)
        sound(result)
        return result


def survives_kills(work: Path, arguments: tuple[str, ...], undisturbed: Path, deaths: list[Death]) -> None:
    """Kills a run or a sweep some times, as often resumed, and lets it end."""
    cwd = place(work)
    again = arguments
    for die in deaths:
        result = die(cwd, again)
        begun = (cwd / "out" / ("parent_run.json" if "-m" in arguments else "run.json")).exists()
        if result.returncode in (130, 143) and begun and die is deaths[0]:  # a later one may die before it reads
            assert ("hydra.sweep.dir=out" if "-m" in arguments else "resume=") in result.stderr, result.stderr
        if begun and "-m" not in arguments:
            again = ("resume=out",)
    if "-m" in arguments:
        finished(cwd, *arguments)
    else:
        resumed(cwd, *arguments)
    equal(cwd, undisturbed)


def at_file(number: int, cwd: Path, arguments: tuple[str, ...]) -> Result:
    """A command that dies before its n-th file."""
    return bakeoff(cwd, *arguments, before=[partial(dies_at_file, number, cwd)])


def by_signal(number: int, seconds: float, cwd: Path, arguments: tuple[str, ...]) -> Result:
    """A command that receives a signal."""
    return killed(cwd, arguments, number, seconds)


def attacks(folder: Path, draw: Random, sweeps: int = SWEEPS) -> list[Attack]:
    """Each signal on runs and on sweeps of each launcher, and runs that die at a file."""
    undisturbed_run(folder)
    if sweeps:
        finished(place(folder / "sweep"), *SWEEP, "hydra/launcher=basic")
    made: list[Attack] = []

    def times(longest: float) -> list[float]:
        return [draw.uniform(0, longest) for _ in range(draw.choice((1, 1, 2)))]

    def add(kind: str, arguments: tuple[str, ...], deaths: list[Death], name: str) -> None:
        undisturbed = folder / ("sweep" if "-m" in arguments else "run")
        attack = partial(survives_kills, folder / f"kill{len(made)}", arguments, undisturbed, deaths)
        made.append(Attack(kind, name, attack))

    for signal_, number in SIGNALS.items():
        for _ in range(RUNS):
            seconds = times(3)
            add(
                f"a run, {signal_} at a random moment",
                RUN,
                [partial(by_signal, number, s) for s in seconds],
                f"{seconds}",
            )
        for launcher, longest in (("basic", 6.0), ("two_jobs", 25.0)):
            for _ in range(sweeps):
                seconds, arguments = times(longest), (*SWEEP, f"hydra/launcher={launcher}")
                kind = f"a sweep ({launcher}), {signal_} at a random moment"
                add(kind, arguments, [partial(by_signal, number, s) for s in seconds], f"{seconds}")
    for _ in range(3 * RUNS):
        files = [int(10 ** draw.uniform(0, 2.5)) for _ in range(draw.choice((1, 1, 2)))]
        kind = "a run, SIGKILL before a random file is opened, made, renamed or removed"
        add(kind, RUN, [partial(at_file, file) for file in files], f"{files}")
    return made
