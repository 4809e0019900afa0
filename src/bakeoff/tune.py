"""The command `bakeoff-tune`: the learning rate of each method on a task, by equally many trials, in a file."""

from __future__ import annotations

import argparse
import datetime
import math
import re
import shlex
import statistics
import sys
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from bakeoff.arguments import add_config_dir, read_arguments
from bakeoff.config import Config, register
from bakeoff.early import check_overrides
from bakeoff.errors import UserError, answering
from bakeoff.folder import read_config, read_record
from bakeoff.identity import config_id, digest, flatten, plain, task_id
from bakeoff.outbox import LOG, read_entries
from bakeoff.paths import CONF, commit, study_folders
from bakeoff.progress import read
from bakeoff.regime import SAMPLED_ACCURACY
from bakeoff.validation import compose

RATES = "1e-6:1e-3:7"
MOST = 1000  # rates of a search
RADIUS = 10  # a trust region has no rate; its radius is searched at this multiple of the rates


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, those of this process by default; raises UserError for a mistake in them."""
    parser = argparse.ArgumentParser(
        prog="bakeoff-tune",
        description=__doc__,
        epilog="Takes the keys of `bakeoff`, as in: bakeoff-tune algorithm=ppo,grpo task=my_task model=smollm2_135m. "
        "Two jobs run at a time; hydra/launcher=NAME chooses another launcher. "
        "Writes conf/tuned/TASK_MODEL/METHOD.yaml in the working folder, where runs on that task and model find it.",
    )
    parser.add_argument("overrides", nargs="*", help="keys of `bakeoff`; algorithm=a,b names the methods")
    parser.add_argument("--rates", default=RATES, help=f"list of rates, or FIRST:LAST:NUMBER (default: {RATES})")
    parser.add_argument("--seeds", default="100", help="tuning seeds, on which a study must not report (default: 100)")
    parser.add_argument("--name", default="", help="folder in conf/tuned (default: TASK_MODEL)")
    parser.add_argument("--base", default="", help="folder in conf/tuned whose other values are kept")
    parser.add_argument("--variant", default="", help="name of the file, where other keys make the one method another")
    add_config_dir(parser)
    found = read_arguments(parser, arguments)
    found.rates, found.seeds = numbers(found.rates), seeds_of(found.seeds)
    named = [each for each in found.overrides if each.startswith("algorithm=")]
    found.methods = methods_of(named[-1] if named else "algorithm=grpo")
    found.overrides = [each for each in found.overrides if each not in named]
    if found.variant and len(found.methods) > 1:
        raise UserError(
            f"--variant is {found.variant!r}, the name of one method's file; algorithm= names {len(found.methods)}."
        )
    return found


def check(arguments: list[str]) -> None:
    """Raises UserError for what can be refused before the libraries of a run are here; see early.py."""
    given = parse(arguments)
    methods = f"algorithm={','.join(given.methods)}"
    check_overrides(["tuned=none", methods, *given.overrides], given.config_dir, sweep=True)


def main() -> None:
    """Tunes every named method, and writes its file; exit code 2 for a user's mistake."""
    command = shlex.join(["bakeoff-tune", *sys.argv[1:]])
    with answering("bakeoff-tune"):
        arguments = parse()
        register()
        for method in arguments.methods:
            name = f"{arguments.name or task_and_model(arguments.overrides)}/{arguments.variant or method}"
            tune(method, name, arguments.base, arguments.overrides, arguments.rates, arguments.seeds, command)


def numbers(text: str) -> list[float]:
    """`1e-5,1e-4` or `1e-6:1e-3:7`, equally spaced in the logarithm, to three digits.

    Raises UserError for anything else, and for rates that are equal.
    """
    try:
        found = spaced(*text.split(":")) if ":" in text else [float(rate) for rate in text.split(",")]
        rates = [float(f"{rate:.3g}") for rate in found]
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise ValueError
    except (ValueError, ArithmeticError, TypeError) as error:
        raise UserError(
            f"--rates is {text!r}; it must be a list of positive numbers, as 1e-5,1e-4, or FIRST:LAST:NUMBER, as "
            f"{RATES}."
        ) from error
    return distinct(rates, "--rates", text, "rates are rounded to three digits")


def spaced(first: str, last: str, count: str) -> list[float]:
    """Numbers from the first to the last, equally spaced in the logarithm; raises ValueError for more than MOST."""
    steps = range(int(count))
    if len(steps) > MOST:
        raise ValueError
    return [float(first) * (float(last) / float(first)) ** (step / max(len(steps) - 1, 1)) for step in steps]


def distinct(values: list[Any], option: str, text: str, why: str) -> list[Any]:
    """The values; raises UserError for an option that has one of them twice."""
    if twice := [value for value in values if values.count(value) > 1]:
        raise UserError(f"{option} is {text!r}, which has {twice[0]:g} twice; {why}, so leave one out.")
    return values


def seeds_of(text: str) -> list[int]:
    """`100,101`; raises UserError for anything else."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds is {text!r}; it must be whole numbers, as 100,101.") from error
    return distinct(seeds, "--seeds", text, "every seed is run once")


def methods_of(override: str) -> list[str]:
    """The methods of `algorithm=a,b`, or of `algorithm=glob(PATTERN)`, which the package's methods may match."""
    value = override.removeprefix("algorithm=")
    pattern = re.fullmatch(r"glob\((.*)\)", value)
    if not pattern:
        return value.split(",")
    found = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml") if fnmatchcase(path.stem, pattern[1]))
    if not found:
        raise UserError(f"{override} matches no method; `bakeoff --help` lists them.")
    return found


def task_and_model(overrides: list[str]) -> str:
    """TASK_MODEL, as a run looks for its tuned values."""
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    return f"{chosen.get('task', 'sort')}_{chosen.get('model', 'tiny')}"


def tune(
    method: str, name: str, base: str, overrides: list[str], rates: list[float], seeds: list[int], command: str
) -> None:
    """Runs every rate with every seed, as one sweep that resumes where it stopped, and writes the best rate."""
    path = study_folders()[0] / "conf" / "tuned" / f"{name}.yaml"
    if path.parent.parent != CONF / "tuned" and (CONF / "tuned" / f"{name}.yaml").exists():
        raise UserError(
            f"the package already has tuned values {name}, which runs would read instead; choose another --name."
        )
    folders = (study_folders()[0] / "conf", CONF)
    places = [folder / "tuned" / base / f"{stem}.yaml" for stem in (path.stem, method) for folder in folders]
    own = next((place for place in places if base and place.exists()), None)
    common = [f"algorithm={method}", f"tuned={base}/{own.stem}" if own else "tuned=none", *overrides]
    config = compose(common)
    key, values = f"algorithm.optimizer.{config.algorithm.optimizer.tuned_key}", rates
    if config.algorithm.optimizer.needs_whole_rollout:
        values = [float(f"{RADIUS * rate:.3g}") for rate in rates]
    fixed = config_id(compose([*common, f"{key}=1"]))  # this search may write the value that its base has
    folder = Path("outputs", "tuning", name, digest([fixed, key]))
    swept = [f"{key}={','.join(map(repr, values))}", f"seed={','.join(map(str, seeds))}"]
    launcher = [] if any(each.startswith("hydra/launcher=") for each in overrides) else ["hydra/launcher=two_jobs"]
    code = launch([*common, *swept, *launcher, f"hydra.sweep.dir={folder}"], command)
    tried = {value: each for value, each in accuracies(folder, key).items() if value in values}
    if len(tried) < len(values) and code:
        raise SystemExit(code)
    if len(tried) < len(values):
        raise UserError(f"{len(values) - len(tried)} of {len(values)} rates of {method} have no run; see {folder}.")
    if not any(map(any, tried.values())):
        raise UserError(f"no rate of {method} reached an accuracy above 0; see the runs in {folder}.")
    write(path, name, key, tried, seeds, command, config, file_values(own, overrides))


def file_values(base: Path | None, overrides: list[str]) -> Any:
    """What a method's file sets: what its base sets, the typed values in their place, and those of the method."""
    loaded: Any = OmegaConf.load(base) if base else {}
    kept = OmegaConf.create({name: values for name, values in loaded.items() if name != "tuned"})

    def of_the_method(override: str) -> bool:
        return override.startswith("algorithm.") or OmegaConf.select(kept, override.split("=")[0]) is not None

    return OmegaConf.merge(kept, OmegaConf.from_dotlist([each for each in overrides if of_the_method(each)]))


def launch(overrides: list[str], typed: str) -> int:
    """Runs a sweep in this process; `typed` resumes one that is interrupted.

    Returns its exit code, 2 for a sweep that was refused and for one with a rate that diverged, which is an outcome.
    """
    from bakeoff.command import command

    GlobalHydra.instance().clear()
    sys.argv[1:] = ["-m", *overrides]
    try:
        command(sys.argv[1:])
    except (KeyboardInterrupt, SystemExit) as ended:
        if getattr(ended, "code", None) != 2:
            ended.__notes__ = [f"To resume, type: {typed}"]  # in the place of the sweep's own command
            raise
        return 2
    return 0


def accuracies(folder: Path, key: str) -> dict[float, list[float]]:
    """The last sampled accuracy of every run by its value, in the order of seeds; 0 for a run that did not finish."""
    found: dict[float, dict[int, float]] = defaultdict(dict)
    for job in sorted(folder.glob("*/")):
        record = read_record(job)
        if record is None:
            continue
        points = [
            point
            for entry in read_entries(job / LOG)
            for point in entry.get("metrics", [])
            if point[0] == SAMPLED_ACCURACY
        ]
        done = (read(job) or {}).get("state") == "done"
        found[flatten(read_config(job))[key]][record.seed] = points[-1][1] if done and points else 0.0
    return {value: [of_seed[seed] for seed in sorted(of_seed)] for value, of_seed in sorted(found.items())}


def write(
    path: Path,
    name: str,
    key: str,
    tried: dict[float, list[float]],
    seeds: list[int],
    command: str,
    config: Config,
    kept: Any,
) -> None:
    """The method's file: its values, the search behind them, and what each trial reached."""
    chosen = max(tried, key=lambda value: statistics.mean(tried[value]))
    method = path.stem
    OmegaConf.update(kept, key, chosen, force_add=True)
    means = ", ".join(f"{value:.3g}: {statistics.mean(each):.3f}" for value, each in tried.items())
    record: dict[str, Any] = {
        "name": name,
        "command": command,
        "trials": sum(map(len, tried.values())),
        "seeds": seeds,
        "accuracies": [round(each, 3) for each in tried[chosen]],
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "task": task_id(config),
        "note": f"Mean sampled accuracy by {key}: {means}. The accuracies are of the chosen value.",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.merge({"tuned": record}, kept))
    path.write_text(f"# @package _global_\n# {method} on {plain(config)['task']['_option_']}, by bakeoff-tune.\n{text}")
    edge = chosen in (min(tried), max(tried)) and len(tried) > 1
    more = " It is the smallest or largest rate tried; widen --rates, for every method." if edge else ""
    print(f"{name}: {key} {chosen:.3g}, accuracy {statistics.mean(tried[chosen]):.3f} ({means}); in {path}.{more}")
