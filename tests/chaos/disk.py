"""Disks that are full or read-only: one sentence, and what can be recovered recovers when there is space again.

Disks of a few kilobytes are mounted in a namespace of Linux, which needs no root; elsewhere this section is left out.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

from tests.chaos.trials import (
    RUN,
    Attack,
    Trial,
    bakeoff,
    equal,
    finished,
    place,
    resumed,
    tried,
    undisturbed_run,
    waiting,
)

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
SIZES = 6  # of each disk that is full


def place_with_disk(cwd: Path, what: str) -> None:
    """A working folder with a disk, which holds the store if that is what stands there."""
    (place(cwd) / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(cwd / "disk")], check=True)
    if what == "store":
        shutil.move(cwd / "mlflow.db", cwd / "disk" / "mlflow.db")


def writable(folder: Path, yes: bool) -> None:
    """Mounts a disk again, for reading alone or for writing too."""
    subprocess.run(["mount", "-o", f"remount,{'rw' if yes else 'ro'}", str(folder)], check=True)


def arguments_of(what: str, cwd: Path) -> tuple[str, ...]:
    """The command of a run of which something stands on the disk `cwd/disk`."""
    out = "disk/out" if what == "output folder" else "out"
    store = "disk/mlflow.db" if what == "store" else "mlflow.db"
    return (*RUN[:-1], f"hydra.run.dir={out}", f"tracking.uri=sqlite:///{cwd / store}")


def with_cache(path: Path) -> None:
    """Makes the process use a cache."""
    os.environ["BAKEOFF_CACHE"] = str(path)


def survives(
    cwd: Path, what: str, undisturbed: Path, spoil: Callable[[Path], None], mend: Callable[[Path], None]
) -> None:
    """Runs where a disk was spoilt before the run starts, and again where it is mended."""
    place_with_disk(cwd, what)
    folder = "disk/out" if what == "output folder" else "out"
    before = [partial(with_cache, cwd / "disk" / "cache")] if what == "cache" else []
    spoil(cwd / "disk")
    result = bakeoff(cwd, *arguments_of(what, cwd), before=before)
    assert result.returncode in (0, 2), result.stderr
    mend(cwd / "disk")
    again = (f"resume={folder}",) if (cwd / folder / "run.json").exists() else arguments_of(what, cwd)
    finished(cwd, *again, before=before)
    equal(cwd / "disk" if what == "store" else cwd, undisturbed)


def survives_in_mid_run(cwd: Path, what: str, undisturbed: Path) -> None:
    """Fills a disk in update 3; resumes where it has space again."""
    place_with_disk(cwd, what)
    with waiting(cwd, *arguments_of(what, cwd)) as run:
        fill(cwd / "disk")
        run.go(3)
        assert run.end().returncode in (0, 2)
    unfill(cwd / "disk")
    finished(cwd, f"resume={'disk/out' if what == 'output folder' else 'out'}")
    equal(cwd / "disk" if what == "store" else cwd, undisturbed)


def fill(folder: Path, left: int = 0) -> None:
    """Writes a file that leaves this number of bytes of the disk."""
    size = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - left
    with (folder / "filling").open("wb") as file:
        file.write(bytes(max(size, 0)))


def unfill(folder: Path) -> None:
    """Removes that file."""
    (folder / "filling").unlink()


def full_output(cwd: Path, what: str, undisturbed: Path) -> None:
    """A run whose words nobody can read."""
    finished(place(cwd), *RUN, before=[to_a_full_device])
    equal(cwd, undisturbed)


def small_files(cwd: Path, what: str, undisturbed: Path, size: int) -> None:
    """A run that may write no larger files than this number of bytes."""
    result = bakeoff(place(cwd), *RUN, before=[partial(limit_files, size)])
    assert result.returncode in (0, 2), result.stderr
    resumed(cwd, *RUN)
    equal(cwd, undisturbed)


def limit_files(size: int) -> None:
    """Makes the process write no larger files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def to_a_full_device() -> None:
    """Makes standard output a full device."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def attacks(folder: Path, draw: Random) -> list[Attack]:
    """Every place full at several sizes, for reading alone, and full from update 3 on."""
    undisturbed_run(folder)
    made: list[Attack] = []

    def add(kind: str, attack: Callable[..., None], what: str, *how: object, name: str = "") -> None:
        made.append(
            Attack(f"{what} {kind}", name, partial(attack, folder / f"disk{len(made)}", what, folder / "run", *how))
        )

    for what in ("output folder", "store", "cache"):
        for _ in range(SIZES):
            left = int(4096 * 2 ** draw.uniform(0, 10))
            add("full", survives, what, partial(fill, left=left), unfill, name=f"after {left} bytes")
        add("read-only", survives, what, partial(writable, yes=False), partial(writable, yes=True))
        if what != "cache":
            add("full from update 3 on", survives_in_mid_run, what)
    for _ in range(SIZES):
        size = int(4096 * 2 ** draw.uniform(0, 10))
        add("no larger than a limit", small_files, "every file", size, name=f"{size} bytes")
    add("full", full_output, "standard output")
    return made


def trials(folder: Path, draw: Random, scale: float = 1.0) -> Iterator[Trial]:
    """A share of the attacks, in a namespace of their own."""
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        return
    command = [*UNSHARE, sys.executable, "-m", "tests.chaos.disk", str(folder), str(draw.random()), str(scale)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Trial(**json.loads(line))
    assert process.returncode == 0, "the section ended early"


def main(folder: str, seed: str, scale: str) -> None:
    """Prints a JSON line for each attack."""
    draw = Random(seed)
    for trial in tried(attacks(Path(folder), draw), draw, float(scale)):
        print(json.dumps(asdict(trial)), flush=True)


if __name__ == "__main__":
    from tests.chaos import disk  # the commands that it starts import its functions by the module's own name

    disk.main(*sys.argv[1:])
