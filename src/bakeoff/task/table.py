"""Tables of examples: JSONL, JSON, CSV and Parquet files, folders, and data sets of the Hugging Face Hub."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bakeoff.errors import UserError, first_line

LONGEST_LINE = 16 * 2**20  # bytes; a longer line is no prompt but a file of another kind
LARGEST_TEXT = 2**31  # bytes of a file that is read whole
MOST_ROWS = 2**24  # a Parquet file of kilobytes may say any number


class Format(Enum):
    """How data is stored; auto: as the ending of the file says, or else JSONL."""

    auto = "auto"
    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    parquet = "parquet"


@dataclass
class Row:
    """A row of a table.

    place     where it stands: line 3 of 'pairs.jsonl'
    values    its columns
    written   the same, in which a number of a text file is the text that stands there
    """

    place: str
    values: dict[str, Any]
    written: dict[str, Any]

    def text(self, column: str) -> str:
        """The text of a column; a number stands for its text: 1.0 is not 1. Raises ValueError where there is none."""
        if column not in self.values:
            raise ValueError(f"{column} is missing")
        value = self.values[column]
        if wrong := fault(value):
            raise ValueError(f"{column} is {wrong}")
        return checked(str(self.written[column]))

    def refused(self, key: str, wanted: str, reason: Exception) -> UserError:
        """The error of a row that cannot be used."""
        return UserError(f"{key}: {self.place} is {shown(self.values)}; it must {wanted} ({reason}).")


def fault(value: Any) -> str:
    """A value that is not a text of an example, and why, as `true, which is not a text`; empty for any other."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return f"{shown(value)}, which is not a text"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which stands for a value that is missing"
    return ""


def shown(value: Any) -> str:
    """The beginning of a value as JSON."""
    try:
        return json.dumps(value, ensure_ascii=True)[:60]
    except TypeError:
        return " ".join(reprlib.repr(value).split())[:60]


def checked(text: str) -> str:
    """The text; raises ValueError for a lone surrogate in it, which is no character and which no tokenizer reads."""
    text.encode()
    return text


def read_table(key: str, path: str, form: Format, name: str, split: str, revision: str) -> list[Row]:
    """The rows of a file, of a folder, or of a data set of the Hub; raises UserError, which names the key.

    Only folders and the Hub have names and splits.
    """
    file, is_dataset = found(path, key)
    if form is Format.auto and not is_dataset:
        form = next((each for each in Format if file.suffix.lower() == f".{each.value}"), Format.jsonl)
    if form is Format.auto:
        rows = read_dataset(key, path, file, name, split, revision)
    else:
        rows = list(READERS[form](file, key))
    if not rows:
        unit = "JSON object per line" if form is Format.jsonl else "row per example"
        raise UserError(f"{key} is '{file}', which is empty; it must have one {unit}.")
    return rows


def rows_hash(rows: list[Row]) -> str:
    """A hash of the rows' values, 16 hex digits: the content of data that is in no file of the user's."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.values, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def is_hub_name(path: str) -> bool:
    """Whether a path that does not exist may name a data set of the Hub: `owner/name`, without an ending of a file."""
    owner, slash, name = path.partition("/")
    plain = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in (owner, name))
    return bool(slash) and plain and Path(path).suffix.lower().lstrip(".") not in {each.value for each in Format}


def found(path: str, key: str) -> tuple[Path, bool]:
    """The path with the user's home in it, and whether it is a folder or may be a data set of the Hub.

    Raises UserError for a pipe or a device, which could be read for ever.
    """
    try:
        file = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            file.stat()  # unlike `exists`, it raises for a name that no file can have
        if file.exists() and not file.is_file() and not file.is_dir():
            raise OSError("it is a pipe or a device")
        return file, file.is_dir() or (not file.exists() and is_hub_name(path))
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have; no home directory
        raise unreadable(key, path, error) from error


def unreadable(key: str, path: str | Path, error: Exception) -> UserError:
    """The error of a file that cannot be read."""
    return UserError(f"{key} is {str(path)!r}, which cannot be read ({error}); it must be a file of examples.")


def read_rows(path: str, key: str, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of the JSONL file that `key` names; each has the keys `texts`, whose values are texts.

    Raises UserError that names the first line which is something else.
    """
    found = []
    for row in read_table(key, path, Format.jsonl, "", "", ""):
        try:
            found.append(row.values | {text: row.text(text) for text in texts})
            if not found[-1]["prompt"].strip():
                raise ValueError("prompt is empty")
        except ValueError as error:
            wanted = f"be a JSON object with a text for each of the keys {', '.join(texts)}"
            raise row.refused(key, wanted, error) from error
    return found


def read_jsonl(file: Path, key: str) -> Iterator[Row]:
    """The objects of a JSONL file."""
    for number, line in enumerate(read_lines(file, key), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield as_row(f"line {number} of '{file}'", json.loads(text), text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{key}: line {number} of '{file}' is {line[:60].decode(errors='replace')!r}; it must be a JSON object "
                f"({error})."
            ) from error


def as_row(place: str, value: Any, text: str) -> Row:
    """The row of a JSON object and its text; raises ValueError where it is no object."""
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    written = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=distinct)
    return Row(place, value, written)


def distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Columns with their values; raises ValueError where two have one name, of which only the last would be read."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {max(names, key=names.count)!r} twice")
    return values


def read_json(file: Path, key: str) -> Iterator[Row]:
    """The objects of a JSON file that holds a list of them."""
    text = read_text(file, key)
    try:
        values = json.loads(text)
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise ValueError("it is something else")
        written = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{key} is '{file}', which must be a JSON list of objects ({error}); task.format=jsonl reads one object "
            "per line."
        ) from error
    return (Row(f"row {n} of '{file}'", *both) for n, both in enumerate(zip(values, written, strict=True), start=1))


def read_csv(file: Path, key: str) -> Iterator[Row]:
    """The rows of a CSV file with a header; every value is text."""
    csv.field_size_limit(LONGEST_LINE)
    text = read_text(file, key)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        distinct([(name, None) for name in reader.fieldnames or ()])
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise ValueError(f"row {number} has more or fewer values than the header")
            yield Row(f"row {number} of '{file}'", row, row)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{key} is '{file}', which must be a CSV file with a header ({error}).") from error


def read_parquet(file: Path, key: str) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        if table.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it has {table.metadata.num_rows:,} rows, which are more than {MOST_ROWS:,}")
        distinct([(name, None) for name in table.schema_arrow.names])
        values = table.read().to_pylist()
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        raise UserError(f"{key} is '{file}', which cannot be read as Parquet ({first_line(error)}).") from error
    return as_rows(values, str(file))


READERS = {Format.jsonl: read_jsonl, Format.json: read_json, Format.csv: read_csv, Format.parquet: read_parquet}


def read_dataset(key: str, path: str, folder: Path, name: str, split: str, revision: str) -> list[Row]:
    """The rows of a split of a data set: of the Hub, of a folder of files, or of one saved by `save_to_disk`."""
    import datasets  # 2 s: only where it is asked for

    datasets.disable_progress_bars()
    try:
        part = re.fullmatch(r"([^\[\]]*)(?:\[(-?\d+)?:(-?\d+)?\])?", split)
        if folder.is_dir() and part is None:
            raise ValueError(
                f"its split is {split!r}, which must be a name, such as train, or rows of it, as train[5:25]"
            )
        if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            found = datasets.load_dataset(str(folder), name if (folder / "README.md").is_file() and name else None)
        else:
            found = datasets.load_dataset(path, name or None, split=split, revision=revision or None)
        if folder.is_dir() and part is not None:
            if isinstance(found, dict) and part[1] not in found:
                raise ValueError(f"its splits are {', '.join(found)}, not {part[1]}")
            found = found[part[1]] if isinstance(found, dict) else found
            begin, end = (int(part[n]) if part[n] else None for n in (2, 3))
            found = found.select(range(*slice(begin, end).indices(len(found)))) if split.endswith("]") else found
    except Exception as error:  # whatever reading, downloading and unpacking may raise
        kind = "a folder" if folder.is_dir() else "no file here, and a data set of the Hub"
        raise UserError(
            f"{key} is '{path}', {kind} that cannot be read ({first_line(error)}); it must be a JSONL, JSON, CSV or "
            "Parquet file, a folder of them or one saved by datasets, or a data set of huggingface.co."
        ) from error
    return list(as_rows(found.to_list(), f"{path} {split}"))


def as_rows(values: Iterable[dict[str, Any]], source: str) -> Iterator[Row]:
    """Rows of plain values."""
    return (Row(f"row {number} of '{source}'", row, row) for number, row in enumerate(values, start=1))


def read_text(file: Path, key: str) -> str:
    """The text of a file, in UTF-8."""
    try:
        if file.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"it is larger than {LARGEST_TEXT >> 30} GiB; JSONL and Parquet may be larger")
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise unreadable(key, file, error) from error


def read_lines(file: Path, key: str) -> Iterator[bytes]:
    """The lines of a file, which may hold any character but a line feed."""
    try:
        with file.open("rb") as stream:
            while line := stream.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{key}: a line of '{file}' is longer than {LONGEST_LINE >> 20} MiB; it must be a JSONL "
                        "file, with one object per line."
                    )
                yield line
    except OSError as error:
        raise unreadable(key, file, error) from error
