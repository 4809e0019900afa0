"""The command `bakeoff`. What takes time to import waits until it is needed: help and completion answer at once."""

from __future__ import annotations

import os
import sys

os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here whole, and leave as one sentence
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

COMPLETION, HELP, SWEEP = {"-sc", "--shell-completion"}, {"-h", "--help"}, {"-m", "--multirun"}


def main() -> None:
    """Runs the command; an interrupt ends it with the command that goes on from there."""
    arguments = sys.argv[1:]
    given = set(arguments)
    try:
        if not arguments or given & (HELP | COMPLETION):
            from bakeoff.standin import stand_in

            stand_in()
        if not arguments or given & HELP:
            from bakeoff.guide import guide

            say(guide([argument for argument in arguments if argument not in HELP]))
            return
        if "--version" in given:
            from importlib.metadata import version

            say(f"bakeoff {version('bakeoff')}")
            return
        if all(not argument.startswith("-") or argument in SWEEP for argument in arguments):
            say("loading torch, transformers and MLflow")
        from bakeoff.command import command

        command(arguments)
    except (KeyboardInterrupt, SystemExit) as error:
        notes = getattr(error, "__notes__", [])
        if notes or isinstance(error, KeyboardInterrupt):
            print("bakeoff: interrupted.", *notes, file=sys.stderr)
        raise SystemExit(error.code if isinstance(error, SystemExit) else 130) from error


def say(text: str) -> None:
    """Prints at once; a reader that has gone, as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
