"""Files: written whole or not at all, hashed by their content, and kept aside where they are damaged."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from bakeoff.errors import UserError

HASH = "_sha256"  # the end of a parameter that is the hash of the file or folder that another one names


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def checksum(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names; 16 hex digits. Empty where there is neither."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    hashes = [
        f"{each.relative_to(path)} {_remembered(each, each.stat().st_size, each.stat().st_mtime_ns)}" for each in files
    ]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16] if files else ""


@lru_cache
def _remembered(path: Path, size: int, changed: int) -> str:
    """The checksum, while size and time of change stay: a configuration is hashed several times in a run."""
    return checksum(path)


def set_aside(path: Path, word: str) -> Path:
    """Renames a file or folder to WORD_NAME, or WORD_NAME_2 and so on; returns the new path."""
    names = (f"{word}_{path.name}" + (f"_{n}" if n > 1 else "") for n in range(1, 10_000))
    target = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    try:
        return path.rename(target)
    except OSError as error:
        raise UserError(f"'{path}' cannot be renamed to '{target.name}' ({error.strerror}); move it away.") from error
