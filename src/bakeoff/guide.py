"""The help of `bakeoff`: the first commands on one screen, or every choice and key, with its docstring's meaning."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from importlib.metadata import entry_points

from bakeoff.algorithm import AXES
from bakeoff.configuration import every_key
from bakeoff.paths import CONF, study_folders, study_names, use_folder

EXAMPLES = """bakeoff: methods that train language models, compared under equal conditions
  bakeoff algorithm=grpo                  a run: a tiny model learns to sort
  bakeoff sweeps=methods seed=5,6         a study of methods, on these seeds
  bakeoff -m algorithm=ppo,grpo seed=1,2  a comparison of your own
  bakeoff resume=outputs/runs/…           resumes a run
  bakeoff-report methods                  the report of a study
  bakeoff-init my_project                 a project with your data and reward"""
MORE = """All choices and keys: bakeoff --help all; some: bakeoff --help algorithm
TAB completes after: eval "$(bakeoff -sc install=bash)"; --cfg job shows values"""
GROUPS = ("task", "model", "reward", "algorithm", "regime", "sweeps")
KEYS = ("budget.limit", "batch.prompts", "batch.group_size", "algorithm.optimizer.lr", "evaluation.every")
SCREEN = 79  # columns that any terminal has


def guide(arguments: list[str]) -> str:
    """The help on one screen, or with words the choices and keys whose names contain one; `all` is every one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    given, others = parser.parse_known_args(arguments)
    use_folder(given.config_dir)
    words = [each for each in others if not each.startswith("-")]
    if words:
        return every_choice_and_key([word.split("=")[0] for word in words])
    rows = {row[0].strip("`"): row for row in every_key()}
    listed = choices()
    lines = [EXAMPLES, "", "Choices, as GROUP=NAME:"]
    lines += [line(group, 9, f"{meaning}: {', '.join(listed[group])}") for group, meaning in meanings().items()]
    lines += ["Values, as KEY=VALUE:", *(line(key, 22, rows[key][-1]) for key in KEYS)]
    names = sorted(each.name for each in entry_points(group="console_scripts") if each.value.startswith("bakeoff."))
    others = [each.removeprefix("bakeoff") for each in names if each != "bakeoff"]
    return "\n".join([*lines, textwrap.shorten(f"Also: bakeoff{', '.join(others)}", SCREEN, placeholder=" …"), MORE])


def line(name: str, width: int, text: str) -> str:
    """A name in a column of this width and what it is, cut at the last word that fits."""
    return f"  {name:<{width}}  {textwrap.shorten(text, SCREEN - width - 4, placeholder=' …')}"


def meanings() -> dict[str, str]:
    """What each of the common groups is, by the comments of conf/config.yaml."""
    comments = re.findall(r"^  - (\w+): .*# ([^:,;\n]+)", (CONF / "config.yaml").read_text(), re.MULTILINE)
    return {group: meaning for group, meaning in comments if group in GROUPS}


def choices() -> dict[str, list[str]]:
    """The names of each group: files in conf/ and the user's conf/, the options of the algorithm's axes, studies."""
    found = {f"algorithm/{axis}": set(options) for axis, options in AXES.items()}
    for conf in {CONF, *(folder / "conf" for folder in study_folders())}:
        for path in conf.glob("*/**/*.yaml"):
            found.setdefault(str(path.parent.relative_to(conf)), set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(found.items())} | {"sweeps": study_names()}


def every_choice_and_key(words: list[str]) -> str:
    """The choices of each group, then each key with its default, range and meaning, as wide as the terminal."""
    width = min(shutil.get_terminal_size().columns, 120) - 1

    def wanted(name: str) -> bool:
        return "all" in words or any(word in name for word in words)

    def wrapped(text: str) -> str:
        return textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)

    lines = [f"{group}=\n{wrapped(', '.join(names))}" for group, names in choices().items() if wanted(group)]
    for name, default, span, unit, meaning in every_key():
        key = name.strip("`")
        if wanted(key):
            of = "" if unit == "–" else f", {unit}"
            lines.append(f"{key}={default}\n{wrapped(f'{meaning} ({span}{of})')}")
    return "\n".join(lines) or f"no group or key contains {' or '.join(words)}; bakeoff --help all lists all of them."
