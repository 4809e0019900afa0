"""Scorers of "others", which a worker imports: each misbehaves in one way."""

import os
import random
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bakeoff.task.task import Task


def act(deed, argument=None):
    """Does what the call asks for, or returns the argument."""
    return DEEDS[deed](argument) if deed in DEEDS else argument


def write(path):
    Path(path).write_text("x")
    return 1.0


def scratch(_):
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("kept")
        file.seek(0)
        return file.read()


def spin(_):
    while True:
        pass


DEEDS = {
    "big power": lambda _: 9**9**9**9,
    "sleep": lambda _: time.sleep(1000),
    "spin": spin,
    "leave": lambda _: sys.exit(0),
    "die": lambda _: os._exit(0),
    "raise": lambda _: {}["level"],
    "interrupt": lambda _: (_ for _ in ()).throw(KeyboardInterrupt),
    "much memory": lambda _: len(bytearray(10**10)),
    "write": write,
    "delete": lambda path: os.remove(path),
    "scratch": scratch,
    "connect": lambda port: socket.create_connection(("127.0.0.1", port), timeout=5) and 1.0,
    "kill": lambda pid: os.kill(pid, 9),
    "draw": lambda _: [random.random(), float(np.random.rand()), float(torch.rand(()))],
}


def dies_of_seven(completions, **_):
    if any("7" in text for text in completions):
        os._exit(0)
    return [float(len(text)) for text in completions]


def level(completions, level, **_):
    return [float(each or 0) for each in level]


def always_raises(completions, **_):
    raise KeyError("weights")


def never_returns(completions, **_):
    spin(None)


def exits(completions, **_):
    sys.exit(0)


@dataclass
class Broken(Task):
    """Replies by what is no text, or not at all."""

    foreign: ClassVar[bool] = True
    does: str = "returns"

    def reply(self, messages, example):
        return 7 if self.does == "returns" else messages[99]["content"]


@dataclass
class Echo(Task):
    """Asks once whether it is so."""

    foreign: ClassVar[bool] = True

    def reply(self, messages, example):
        return f"{messages[-1]['content']}?" if len(messages) == 2 else None
