"""docs/data.md: every command of the page trains, from a folder that is no checkout, on files that it names."""

import json
import re
import shlex

import pytest

from bakeoff.paths import ROOT
from tests.commands import call

COMMANDS = re.findall(r"^    bakeoff (.*)$", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
ROWS = [{"question": f"{n}+{n}=", "answer": f"{n}+{n}\n#### {2 * n}"} for n in range(40)]
PAIRS = [{"prompt": f"{n}+{n}=", "answer": f"{2 * n}"} for n in range(50)]
SMALL = [
    *('model.characters="0123456789=+#<>.: \n"', "tuned=none", "sft.steps=0", "batch.prompts=2", "batch.group_size=2"),
    *("budget={unit: updates, limit: 1}", "checkpoint.every=0", "task.max_new_tokens=4", "task.heldout=4"),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text(
        "question,answer\n" + "\n".join(f'{row["question"]},"{row["answer"]}"' for row in ROWS)
    )
    (tmp_path / "data").mkdir()
    for path, rows in (("train", PAIRS), ("test", PAIRS[45:]), ("data/train", ROWS[:30]), ("data/test", ROWS[30:])):
        (tmp_path / f"{path}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_every_command_of_the_data_page_trains(folder):
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        if "gsm8k" in command:  # whose system prompt has other characters
            command += " task.system=''"
        done = call("bakeoff.__main__", (*SMALL, *shlex.split(command)), folder)
        assert done.returncode == 0, (command, done.stderr)
        assert "training prompts of" in " ".join(done.stdout.split())


def test_a_run_names_the_verifier_that_would_accept_its_completions(folder):
    rows = [{"prompt": "0" * n + "=", "answer": "0."} for n in range(40)]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = ["task=jsonl", "task.path=own.jsonl", 'model.characters="0=."', "evaluation.every=1"]
    done = call("bakeoff.__main__", (*SMALL, *few, "task.heldout=30"), folder)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "no completion matched its answer exactly in 30 held-out prompts" in said
    assert "task.verify=number" in said
