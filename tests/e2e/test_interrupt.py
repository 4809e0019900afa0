"""Ctrl-C at any moment ends every command in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from bakeoff.__main__ import OTHERS
from bakeoff.errors import UserError
from bakeoff.progress import read
from bakeoff.signals import reraising_interrupts
from tests.stored import only_run

ARGUMENTS = {
    "bakeoff": ["seed=1"],
    "bakeoff-init": ["project"],
    "bakeoff-tune": ["algorithm=grpo", "--rates", "1e-4,1e-3"],
    "bakeoff-predict": ["--largest", "model=tiny", "hardware=h100"],
    "bakeoff-evaluate": ["hf/none", "task=sort"],
    "bakeoff-report": ["--all"],
    "bakeoff-reward-model": [],
}
STARTED = """
import signal, sys
sys.argv = [{name!r}, *sys.argv[1:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as these tests may be, ignores it
import bakeoff.__main__ as m
print(flush=True)
m.main() if sys.argv[0] == "bakeoff" else m.other()
"""


def test_every_command_is_tried():
    assert set(ARGUMENTS) == {"bakeoff", *OTHERS}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_interrupt_ends_a_command_in_one_line(name, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED.format(name=name), *ARGUMENTS[name]],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()
    time.sleep(Random(name).uniform(0, 0.5))  # the fastest command takes a second
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=300)[1]
    assert "Traceback" not in said
    assert process.returncode == 130, said
    assert said.count("interrupted.") == 1


SHARED = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from joblib import Parallel, delayed
from bakeoff.launcher.local import shield_processes
shield_processes()
print(flush=True)
try:
    Parallel(2)(delayed(time.sleep)(60) for _ in range(2))
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6])
def test_an_interrupt_ends_the_processes_of_a_sweep_in_silence_while_they_start(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", SHARED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")


def ended(code: str, folder: Path, **files: str) -> tuple[int, str]:
    """Exit code and stderr of a Python process in a folder with these modules, where Ctrl-C does what it does first."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    first = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", first + code]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return process.returncode, process.stderr


COMMAND = """
from bakeoff.__main__ import interruptible
from bakeoff.signals import open_run
import contextlib, sys, time
with interruptible("try-me"), {context}:
    try:
        {moment}
    except Exception:
        pass  # a library that goes on
    print("the run went on", file=sys.stderr)
    time.sleep(60)
"""
RAISED = "import signal; signal.raise_signal(signal.SIGINT)"
IMPORTS = {  # what libraries make of an interrupt
    "swallowed": "try:\n    import raised\nexcept BaseException:\n    pass",
    "replaced": "try:\n    import raised\nexcept BaseException:\n    raise ImportError('no such module') from None",
    "replaced by its end": "try:\n    import raised\nfinally:\n    None.end",
    "raised": "import raised",
}


@pytest.mark.parametrize("library", IMPORTS.values(), ids=IMPORTS)
def test_an_interrupt_of_an_import_is_not_lost(library, tmp_path):
    files = {"raised": RAISED, "library": library}
    before_a_run = COMMAND.format(context="contextlib.nullcontext()", moment="import library")
    assert ended(before_a_run, tmp_path, **files) == (130, "try-me: interrupted.\n")
    in_a_run = COMMAND.format(context="open_run()", moment="import library")
    code, said = ended(in_a_run, tmp_path, **files)
    assert (code, said.splitlines()[-1]) == (130, "try-me: interrupted.")


def test_an_interrupt_that_python_ignores_comes_again(tmp_path):
    moment = "import freed; end = freed.Freed(); del end"
    freed = "import signal\nclass Freed:\n    def __del__(self): signal.raise_signal(signal.SIGINT); len('')"
    code, said = ended(COMMAND.format(context="open_run()", moment=moment), tmp_path, freed=freed)
    assert (code, said.splitlines()[-1], "Traceback" in said) == (130, "try-me: interrupted.", False)


REPLACED = """
import signal


def score(prompts, completions, **columns):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        {}["none"]
"""


def test_a_run_whose_interrupt_a_library_replaces_is_killed_and_no_failure(tmp_path):
    command = [
        "reward=function",
        "+reward.functions={replaced.score: 1}",
        "reward.isolated=false",
        "model=tiny",
        "sft.steps=1",
        "threads=1",
    ]
    typed = ["bakeoff", *command, "hydra.run.dir=run"]
    run = f"import sys; sys.argv = {typed}; import bakeoff.__main__ as m; m.main()"
    code, said = ended(run, tmp_path, replaced=REPLACED)
    assert (code, said.count("interrupted."), "Traceback" in said) == (130, 1, False)
    assert "To resume the run, type: bakeoff resume=" in said
    assert read(tmp_path / "run")["state"] == "killed"
    assert only_run(tmp_path).info.status == "KILLED"


@pytest.mark.parametrize("seed", range(20))
def test_an_error_that_follows_an_interrupt_is_the_interrupt(seed):
    chance = Random(seed)
    first = chance.choice([KeyboardInterrupt(), SystemExit(143)])
    errors = [chance.choice([ValueError, AttributeError, OSError, UserError])() for _ in range(chance.randint(0, 4))]

    def fail(errors):
        try:
            if not errors:
                raise first
            fail(errors[:-1])
        finally:
            if errors:
                raise errors[-1] from chance.choice([None, KeyError()])

    def later():
        try:
            fail(errors)
        except BaseException as error:
            kept = error
        raise ValueError from kept

    with pytest.raises(type(first)) as ended, reraising_interrupts():
        chance.choice([later, lambda: fail(errors)])()
    assert ended.value is first


@pytest.mark.parametrize("error", [ValueError(), UserError(), SystemExit(2), MemoryError()])
def test_an_error_without_an_interrupt_stays(error):
    error.__context__ = SystemExit(1)  # of a library's own parser, say
    with pytest.raises(type(error)) as ended, reraising_interrupts():
        raise error
    assert ended.value is error
