"""The start that all measurements share: the device of their command line, and a loop."""

from __future__ import annotations

import argparse

from bakeoff.config import Config
from bakeoff.device import choose_device
from bakeoff.errors import UserError
from bakeoff.loop import Loop
from bakeoff.start import prepare, start


def with_device(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of the command line, `--device` among them; exits with one sentence for an unknown device."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), or another device of torch")
    options = parser.parse_args()
    try:
        choose_device(options.device)
    except UserError as error:
        parser.error(str(error))
    return options


def started(config: Config) -> Loop:
    """The loop of a configuration, on its device."""
    return start(config, prepare(config))
