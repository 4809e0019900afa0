"""The commands. What takes time to import waits until it is needed: help and completion answer at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from bakeoff.early import reading
from bakeoff.signals import INTERRUPTED, interrupts, reraising_interrupts

os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here whole, and leave as one sentence
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

COMPLETION, HELP, SWEEP = {"-sc", "--shell-completion"}, {"-h", "--help"}, {"-m", "--multirun"}

OTHERS = {
    "bakeoff-init": "bakeoff.init",
    "bakeoff-tune": "bakeoff.tune",
    "bakeoff-predict": "bakeoff.predict_command",
    "bakeoff-evaluate": "bakeoff.evaluate",
    "bakeoff-report": "bakeoff.report.__main__",
    "bakeoff-reward-model": "bakeoff.reward_model",
}


@contextmanager
def interruptible(command: str) -> Iterator[None]:
    """An interrupt ends the command in one line, also while it imports, with the command that resumes it, if any."""
    try:
        with interrupts(command), reraising_interrupts():
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        notes = getattr(error, "__notes__", [])
        if notes or isinstance(error, KeyboardInterrupt):
            print(f"{command}: interrupted.", *notes, file=sys.stderr)
        raise SystemExit(error.code if isinstance(error, SystemExit) else INTERRUPTED) from error


@interruptible("bakeoff")
def main() -> None:
    """Runs `bakeoff`."""
    arguments = sys.argv[1:]
    given = set(arguments)
    if not arguments or given & (HELP | COMPLETION):
        from bakeoff.standin import stand_in

        stand_in()
    if not arguments or given & HELP:
        from bakeoff.guide import guide

        say(guide(arguments))
        return
    if "--version" in given:
        from importlib.metadata import version

        say(f"bakeoff {version('bakeoff')}")
        return
    read_early = reading("bakeoff", "bakeoff.command", arguments)
    if all(not argument.startswith("-") or argument in SWEEP for argument in arguments):
        say("loading torch, transformers and MLflow")
    from bakeoff.command import command

    read_early()
    command(arguments)


def other() -> None:
    """Runs the command by whose name it was called, such as `bakeoff-tune`."""
    name = Path(sys.argv[0]).stem
    with interruptible(name):
        module, arguments = OTHERS[name], sys.argv[1:]
        if HELP & set(arguments):
            from bakeoff.standin import stand_in

            stand_in()
            import_module(module).main()
            return
        read_early = reading(name, module, arguments)
        run = import_module(module).main
        read_early()
        run()


def say(text: str) -> None:
    """Prints at once; a reader that has gone, as `head`, and a disk that is full are no error."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
