"""`python -m tests.chaos [SECTION …]`: tries to break the product by its commands; prints a Markdown table.

`--scale 0.1` tries a tenth of it. What did not survive is named; then the command ends with 1.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from tests.chaos import damage, disk, fuzz, hostile, kills, outages
from tests.chaos.trials import Trial, one_line, table, tried

Section = Callable[[Path, Random, float], Iterator[Trial]]  # of a folder, of what is drawn, and of a share to try
SECTIONS: dict[str, Section] = {
    "kills": lambda folder, draw, scale: tried(kills.attacks(folder, draw), draw, scale),
    "damage": lambda folder, draw, scale: tried(damage.attacks(folder, draw), draw, scale),
    "outages": lambda folder, draw, scale: tried(outages.attacks(folder), draw, scale),
    "disk": disk.trials,
    "fuzz": lambda folder, draw, scale: fuzz.trials(draw, scale),
    "hostile": lambda folder, draw, scale: hostile_trials(draw, scale),
}


def hostile_trials(draw: Random, scale: float) -> Iterator[Trial]:
    """Every hostile completion against a share of the scorers."""
    names = hostile.every_generator()
    for found in hostile.trials(draw.sample(names, max(1, round(scale * len(names))))):
        yield Trial("a hostile completion against a scorer of reasoning-gym", f"{found[:2]}", found.fault)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line, by default that of this process; all sections where none is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", default=[*SECTIONS], metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is drawn (default: the time)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of what is tried (default: 1)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.sections if name not in SECTIONS]:  # `choices` refuses a list as default
        parser.error(f"the section is {unknown[0]!r}; it may be one of {', '.join(SECTIONS)}")
    return options


def main() -> None:
    """Runs the sections that are named, or all."""
    options = parsed()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    rows, lost = [], []
    for section in options.sections:
        began, trials = time.monotonic(), []
        with tempfile.TemporaryDirectory() as folder:
            os.environ["BAKEOFF_CACHE"] = f"{folder}/cache"
            for trial in SECTIONS[section](Path(folder), Random(f"{section} {options.seed}"), options.scale):
                trials.append(trial)
                if trial.fault:
                    print(f"{section}, {trial.kind}, {trial.name}: {one_line(trial.fault)}", flush=True)
        lost += [trial for trial in trials if trial.fault]
        rows.append(table(section, trials))
        print(f"{section}: {len(trials)} tried in {time.monotonic() - began:.0f} s, seed {options.seed}", flush=True)
    print("\n| section | attack | tried | survived |\n|---|---|---:|---:|\n" + "\n".join(rows))
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
