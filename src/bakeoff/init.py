"""The command `bakeoff-init`: writes a project for a question of your own, in which every command works."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from bakeoff.arguments import read_arguments
from bakeoff.errors import UserError, answering
from bakeoff.files import replace_text
from bakeoff.paths import ANALYSIS

PROBLEMS = 200
PROJECT = Path(__file__).parent / "project"  # code is a text here, so that no tool takes it for the package's


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, those of this process by default; raises UserError for a mistake in them."""
    parser = argparse.ArgumentParser(prog="bakeoff-init", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for task, reward, study, data, notebook and README")
    return read_arguments(parser, arguments)


check = parse  # see early.py


def main() -> None:
    """Writes the folder and prints what to type in it; exit code 2 for a user's mistake."""
    with answering("bakeoff-init"):
        folder = parse().folder
        write(folder)
    there = shlex.quote(str(folder))
    print(f"{folder / 'README.md'} lists the commands. First: cd {there} && bakeoff sweeps=my_study model=toy")


def write(folder: Path) -> None:
    """Writes the files of a project; raises UserError, and writes nothing, where one of them is there already."""
    if next((each for each in (folder, *folder.parents) if each.exists()), folder).is_file():
        raise UserError(f"'{folder}' is a file, or below one; choose a folder.")
    paths = [path for path in PROJECT.rglob("*") if path.is_file()]
    texts = {str(path.relative_to(PROJECT)).removesuffix(".txt"): path.read_text("utf-8") for path in paths}
    texts["analysis/my_study.ipynb"] = (
        (ANALYSIS / "methods.ipynb").read_text("utf-8").replace("reports/methods", "reports/my_study")
    )
    there = sorted(name for name in [*texts, "data/problems.jsonl"] if (folder / name).exists())
    if there:
        raise UserError(
            f"'{folder}' already has {', '.join(there)}, which bakeoff-init would replace; choose another folder."
        )
    texts["data/problems.jsonl"] = "".join(json.dumps(row) + "\n" for row in problems())
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace_text(folder / name, text)


def problems() -> list[dict[str, str]]:
    """Word problems of grade-school maths, as reasoning-gym's gsm_symbolic draws them, with distinct texts of ASCII."""
    import reasoning_gym

    found: dict[str, str] = {}
    for entry in reasoning_gym.create_dataset("gsm_symbolic", size=4 * PROBLEMS, seed=1):
        if entry["question"].isascii() and len(found) < PROBLEMS:
            found[entry["question"]] = str(entry["answer"])
    return [{"question": question, "answer": f"#### {answer}"} for question, answer in found.items()]
