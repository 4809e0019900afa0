"""The files of a report: written whole or not at all, and in place of an earlier report's files alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bakeoff.errors import UserError

WRITTEN = ".written.json"  # in a report's folder: its files, as paths below --out


@contextmanager
def replaced(out: Path, name: str) -> Iterator[Path]:
    """An empty folder to write NAME.html, NAME.md and NAME/ to, which at the end take the place of those in `out`.

    Of the files in `out` only those that the earlier report of this name wrote are replaced or removed. Raises
    UserError where another file has the name of one, and where a folder cannot be written.
    """
    try:
        refuse_foreign(out, name, [f"{name}.html", f"{name}.md"])
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as made:
            (Path(made) / name).mkdir()
            yield Path(made)
            take_place(Path(made), out, name)
    except OSError as error:
        where, reason = error.filename or out, error.strerror or error
        raise UserError(f"the report is not written: '{where}': {reason}; --out DIR chooses another folder.") from error


def take_place(made: Path, out: Path, name: str) -> None:
    """Moves the files of a new report to `out`, and removes those of the earlier one that it does not have."""
    (made / name / WRITTEN).touch()
    files = [str(path.relative_to(made)) for path in sorted(made.rglob("*")) if path.is_file()]
    refuse_foreign(out, name, files)
    (made / name / WRITTEN).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    earlier = written(out, name)
    (out / name).mkdir(exist_ok=True)
    for file in files:
        (made / file).replace(out / file)
    for file in earlier - set(files):
        (out / file).unlink(missing_ok=True)


def refuse_foreign(out: Path, name: str, files: Iterable[str]) -> None:
    """Raises UserError if a file stands where a report's is to be, and no report wrote it."""
    for file in sorted(set(files) - written(out, name)):
        if (out / file).exists():
            raise UserError(
                f"'{out / file}' would be replaced, but this report did not write it; rename it, or choose another "
                "folder by --out DIR."
            )


def written(out: Path, name: str) -> set[str]:
    """The files of the earlier report of this name, as paths below `out`; a path to elsewhere is none of them."""
    try:
        listed = {str(file) for file in json.loads((out / name / WRITTEN).read_text(encoding="utf-8"))}
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return set()
    own = {f"{name}.html", f"{name}.md", *(f"{name}/{path.name}" for path in (out / name).iterdir())}
    return listed & own
