"""The arguments of a command: options, which may stand anywhere, and KEY=VALUE. A mistake is one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from bakeoff.errors import UserError
from bakeoff.nearest import did_you_mean, nearest
from bakeoff.paths import CONF, use_folder


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Adds the option of `bakeoff` that names the user's folder of studies."""
    parser.add_argument(
        "--config-dir", "-cd", metavar="DIR", help="your folder of studies (default: the working folder)"
    )


def read_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, those of this process by default; raises UserError for an unknown option or a wrong value.

    `--config-dir` makes its folder the user's.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; {parser.prog} --help lists the options.")

    parser.error = refuse  # type: ignore[method-assign]
    found, left = parser.parse_known_intermixed_args(arguments)
    for each in left:
        option = each.split("=")[0]
        raise UserError(f"unknown option {option}{did_you_mean(nearest(option, parser._option_string_actions))}")
    use_folder(getattr(found, "config_dir", None))  # also in a launcher's processes
    for each in getattr(found, "overrides", []):
        if "=" not in each and not each.startswith("~"):
            raise UserError(f"'{each}' does not have the form KEY=VALUE{did_you_mean(choosing(each))}")
    return found


def choosing(name: str) -> list[str]:
    """`algorithm=grpo` for the name of a choice, or for one that is like it."""
    by_name = {path.stem: f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml")}
    return [by_name[each] for each in nearest(name, by_name)]


def of_hydra(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of `bakeoff` as Hydra reads them, and the same with its options first, where Hydra expects them."""
    parser = get_args_parser()
    parser.prog = "bakeoff"
    found, options = read_arguments(parser, arguments), list(arguments)
    for override in found.overrides:
        options.remove(override)
    return found, [*options, *found.overrides]
