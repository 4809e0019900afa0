"""Mistakes of a user end a command with one sentence and no traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from bakeoff.nearest import did_you_mean, nearest, nearest_keys, unknown
from bakeoff.signals import reraising_interrupts

KILLED = "was killed, probably because memory ran out"


class UserError(Exception):
    """A mistake that the user can correct: one sentence that names the key, its value and the values that are valid."""


MISTAKES = (UserError, HydraException, OmegaConfBaseException, YAMLError)  # errors of a command line or a YAML file
# errors of a disk that is full, over quota, read-only, not permitted or broken, and of unusable paths
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
DISK |= {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}
MAKING = {"mkdir", "makedirs"}  # functions whose every error is the disk's


@contextmanager
def refused() -> Iterator[None]:
    """Turns an error of composing a configuration, or of a disk, into a UserError of one sentence with its notes."""
    try:
        with reraising_interrupts():
            yield
    except UserError:
        raise
    except Exception as error:
        module, _ = origin(error)
        known = isinstance(error, MISTAKES) or disk_fault(error)
        if not known and module.split(".")[0] not in ("hydra", "omegaconf"):
            raise
        raise UserError(" ".join([sentence(error), *getattr(error, "__notes__", [])])) from error


def disk_fault(error: BaseException) -> str:
    """Why a file cannot be written, empty for any other error: `No space left on device: '/a/b'`.

    Errors of libraries in Rust, such as safetensors, have the number and the path in their text alone.
    """
    found = re.search(r"\(os error (\d+)\)(?: at path \"(.+)\")?", str(error))
    number, path = (error.errno, error.filename) if isinstance(error, OSError) else found.groups() if found else (0, "")
    functions = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    making = isinstance(error, OSError) and MAKING & functions
    if number is None or (int(number) not in DISK and not making):
        return ""
    return os.strerror(int(number)) + (f": '{path}'" if path else "")


def origin(error: BaseException) -> tuple[str, dict[str, Any]]:
    """Name of the module that raised the error, and the variables of its function there."""
    *_, (frame, _) = [(None, 0), *traceback.walk_tb(error.__traceback__)]
    return (frame.f_globals["__name__"], frame.f_locals) if frame else ("", {})


GROUP = "{key} is a group, not a value; {key}.KEY=VALUE sets a key, {group}=NAME a choice."
HIDDEN = "***"  # stands for a password
SECRET = r"(?i:(?:\b|[?&;]\w*)(?:password|passwd|pwd)|[?&;]\w*(?:token|secret))"  # a key of an address that holds one
# what to install for each launcher that comes with no package of ours
LAUNCHERS = {
    "slurm": "submitit",
    "ray": "ray",
    "submitit_slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "ray_aws": "hydra-ray-launcher",
    "rq": "hydra-rq-launcher",
}


def redacted(text: str) -> str:
    """The text without passwords and tokens of addresses: `postgresql://me:***@host`, `https://***@host`."""
    for secret in (r"(\w://[^:/@\s]*:)[^\s]+(?=@)", r"(https?://)[^:/@\s]+(?=@)", rf"({SECRET}=)[^&;\s'\"]+"):
        text = re.sub(secret, rf"\1{HIDDEN}", text)
    return text


def first_line(error: BaseException) -> str:
    """The first line of an error, without passwords."""
    return redacted(str(error).strip().split("\n")[0])[:300]


def not_installed(launcher: str) -> str:
    """What to type where a launcher's package is not there."""
    package = LAUNCHERS[launcher]
    return f"hydra/launcher={launcher} needs {package}, which is not installed; type: pip install {package}"


def sentence(error: BaseException) -> str:
    """An error of ours, of Hydra or of OmegaConf as one sentence, with the valid choices."""
    if isinstance(error, UserError):
        return str(error)
    if fault := disk_fault(error):
        return f"a file or folder cannot be written ({fault}); make space there, or choose another folder."
    if isinstance(error, OverrideParseException):
        return (
            f"'{error.override}' cannot be read as KEY=VALUE; a value with a quote, a `#` or a letter beyond ASCII "
            f"takes quotes of its own, as in KEY='\"VALUE\"'."
        )
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    tuned_key = re.search(r"In 'tuned/.*full_key: (\S+)", str(error), re.DOTALL)
    if tuned_key:
        return f"the tuned values set {tuned_key[1]}, which the chosen option lacks; tuned=none leaves them out."
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        key, whole = str(cause.full_key), re.search(r"Could not override '([^']+)'", str(error))
        return unknown_key(key, cause.parent_node, whole[1] if whole else key)
    if isinstance(cause, ValidationError) and "not Optional" in str(cause):
        return f"{cause.full_key} is null; it must have a value."
    if isinstance(cause, ValidationError) and "is not a subclass of" in str(cause):
        key = str(cause.full_key)
        return GROUP.format(key=key, group=key.replace(".", "/"))
    if isinstance(cause, ValidationError):
        first = str(cause).splitlines()[0].rstrip(".")
        listed = re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", first)
        return f"{cause.full_key}: {first}{did_you_mean(nearest(listed[1], listed[2].split(', ')) if listed else [])}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and choice in LAUNCHERS:
            return not_installed(choice)
        return unknown("choice", choice, error.options, f"{group}=")
    module, variables = origin(error)
    if module == "hydra._internal.defaults_list" and isinstance(error, ValueError):  # which does not name the group
        typed = getattr(variables.get("override"), "input_line", error)
        return f"{typed}: a group takes the name of a choice; `bakeoff --help all` lists them."
    if isinstance(error, YAMLError):
        return f"a file is not valid YAML: {' '.join(str(error).split())}."
    reason = str(cause).splitlines()[:1] if cause and cause is not error else []
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() + reason]
    said = "; ".join(line for line in lines if line and not line.startswith("See https"))
    return f"{said or 'the command line cannot be read'}."


def unknown_key(key: str, group: DictConfig, typed: str) -> str:
    """The sentence on a key that a group of a configuration does not have; `typed` is the key as the user wrote it."""
    known = [each for each in group if each != "hydra"]
    if not known:
        return f"unknown key {key}; the option chosen there has no keys."
    every: Any = OmegaConf.to_container(group._get_root(), resolve=False)
    dotted = typed.replace("/", ".")
    keys = [each for each in keys_of(every) if each.startswith("hydra") == dotted.startswith("hydra")]
    found = [each.replace(".", "/") if "/" in typed else each for each in nearest_keys(dotted, keys)]
    return f"unknown key {key}; valid keys are {', '.join(map(str, known))}{did_you_mean(found)}"


def keys_of(values: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """The name of every group and key of a nested dictionary, with dots."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


@contextmanager
def within(seconds: float, message: str) -> Iterator[None]:
    """Raises UserError with this message after that time, which stops Python code that does not end by itself.

    A signal does so, which only a process's main thread receives; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise UserError(message)

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again: a library may swallow an error
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def fail(error: BaseException, command: str = "bakeoff") -> NoReturn:
    """Ends the command with the error's sentence, its notes and exit code 2."""
    print(redacted(f"{command}: {' '.join([sentence(error), *getattr(error, '__notes__', [])])}"), file=sys.stderr)
    raise SystemExit(2) from error


@contextmanager
def answering(command: str) -> Iterator[None]:
    """Ends the command with one sentence and exit code 2 where the user made a mistake."""
    try:
        with refused():
            yield
    except UserError as error:
        fail(error, command)
