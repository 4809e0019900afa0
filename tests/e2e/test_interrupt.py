"""Ctrl-C at any moment ends every command in one line."""

import os
import signal
import subprocess
import sys
import time
from random import Random

import pytest

from bakeoff.__main__ import OTHERS

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
