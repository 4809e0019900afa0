"""Mistakes of a user end a command with one sentence and no traceback."""

from __future__ import annotations

import re
import sys
from typing import NoReturn

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError


class UserError(Exception):
    """A mistake that the user can correct: one sentence that names the key, its value and the values that are valid."""


MISTAKES = (UserError, HydraException, OmegaConfBaseException, YAMLError)  # errors of a command line or a YAML file


def redacted(text: str) -> str:
    """The text without passwords of addresses: `postgresql://me:***@host`."""
    return re.sub(r"(password=)[^&\s'\"]+", r"\1***", re.sub(r"(\w://[^:/@\s]*:)[^\s/]+@", r"\1***@", text))


def sentence(error: BaseException) -> str:
    """An error of ours, of Hydra or of OmegaConf as one sentence, with the valid choices."""
    if isinstance(error, UserError):
        return str(error)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    tuned_key = re.search(r"In 'tuned/.*full_key: (\S+)", str(error), re.DOTALL)
    if tuned_key:
        return f"the tuned values set {tuned_key[1]}, which is no key of the chosen option; tuned=none leaves them out."
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        known = ", ".join(str(key) for key in cause.parent_node if key != "hydra")
        valid = f"valid keys are {known}" if known else "the option chosen there has no keys"
        return f"unknown key {cause.full_key}; {valid}."
    if isinstance(cause, ValidationError):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"unknown choice {group}={choice}; valid choices are {', '.join(error.options)}."
    if isinstance(error, YAMLError):
        return f"a file is not valid YAML: {' '.join(str(error).split())}."
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("See https")) + "."


def fail(error: BaseException, command: str = "bakeoff") -> NoReturn:
    """Ends the command with the error's sentence, its notes and exit code 2."""
    print(redacted(f"{command}: {' '.join([sentence(error), *getattr(error, '__notes__', [])])}"), file=sys.stderr)
    raise SystemExit(2) from error
