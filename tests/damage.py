"""Ways in which a file is damaged; each draws where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random


def flip(path: Path, draw: Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def become_a_folder(path: Path, draw: Random) -> None:
    path.unlink()
    path.mkdir()


def lose_its_end(path: Path, draw: Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def grow(path: Path, draw: Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(1 + draw.randrange(9)))


def lead_nowhere(path: Path, draw: Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path, Random], object]] = {
    "a flipped bit": flip,
    "an end that is missing": lose_its_end,
    "bytes at its end": grow,
    "no content": lambda path, draw: path.write_bytes(b""),
    "no file": lambda path, draw: path.unlink(),
    "a folder in its place": become_a_folder,
    "a link to nothing": lead_nowhere,
    "other bytes": lambda path, draw: path.write_bytes(draw.randbytes(path.stat().st_size)),
}
