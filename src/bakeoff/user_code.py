"""Code of a user, in a module or in a file: found, imported, and named where it fails."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import posixpath
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from bakeoff.errors import UserError, fail
from bakeoff.files import content_hash

FILE = re.compile(r"(?P<file>.*\.py)(?::(?P<name>.*))?")
STANDARD, *INSTALLED = (sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "purelib", "platlib"))
OURS = str(Path(__file__).parent) + os.sep


def look_in_working_folder() -> None:
    """Lets imports find modules of the working folder: `python -m` looks there, a console script does not."""
    if "" not in sys.path:
        sys.path.append("")


def load(path: str, key: str, ours: Iterable[str]) -> Callable[..., Any]:
    """The function at an import path, in the current folder too, or in a file; raises UserError where there is none."""
    in_file = FILE.fullmatch(path)
    if in_file:
        module, attribute = imported_file(in_file["file"], key, path), in_file["name"] or ""
        found = vars(module).get(attribute)
        if found is None:
            functions = [n for n, each in vars(module).items() if inspect.isfunction(each) and not n.startswith("_")]
            raise UserError(
                f"{key} names {path!r}, but '{module.__file__}' has no function {attribute!r}; write "
                f"{in_file['file']}:NAME with one of its functions ({', '.join(functions) or 'it has none'})."
            )
    else:
        look_in_working_folder()
        name, _, attribute = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(name), attribute)
        except (Exception, SystemExit) as error:  # the module is code of others
            raise UserError(
                f"{key} names {path!r}, which cannot be imported ({raised(error)}); it must be "
                + (f"one of {', '.join(ours)}, " if ours else "")
                + "an import path module.function, or a function in a file, ./file.py:function."
            ) from error
    if not callable(found):
        raise UserError(f"{key} names {path!r}, which is of type {type(found).__name__}, not a function.")
    function: Callable[..., Any] = found
    return function


def imported_file(typed: str, key: str, path: str) -> ModuleType:
    """The module that a file holds; functions of one file share it, and a changed file is another module.

    The file may import its neighbours. Raises UserError for a file that is not there or that cannot be imported.
    """
    file = Path(typed).expanduser().resolve()
    if not file.is_file():
        raise UserError(
            f"{key} names {path!r}, but there is no file '{file}'; write its path relative to the working folder."
        )
    name = f"{file.stem}_{hashlib.sha256(f'{file} {content_hash(file)}'.encode()).hexdigest()[:10]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        try:
            spec.loader.exec_module(sys.modules[name])
        except (Exception, SystemExit) as error:  # the file is code of others
            del sys.modules[name]
            raise UserError(f"{key} names {path!r}, whose file cannot be imported: it {raised(error)}.") from error
    return sys.modules[name]


def code_hash(file: Path) -> str:
    """The content hash of a file of code and of the modules of its folder that it imports, at any remove.

    Of a file that imports none it is that of the file.
    """
    found, waiting = dict[Path, str](), [file.resolve()]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found[each] = content_hash(each)
            waiting += neighbours(each)
    first, *others = found.items()
    hashes = [first[1], *sorted(f"{each.name} {value}" for each, value in others)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16] if others else first[1]


def neighbours(file: Path) -> list[Path]:
    """The files of the modules and packages of a file's own folder that it imports; none where it is not Python."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return []
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in (node for node in nodes if isinstance(node, ast.ImportFrom) and node.level < 2):
        names |= {node.module} if node.module else {alias.name for alias in node.names}  # from . import x
    tops = sorted({name.partition(".")[0] for name in names})
    return [
        each
        for top in tops
        for each in (file.parent / f"{top}.py", *(file.parent / top).rglob("*.py"))
        if each.is_file()
    ]


def require_loggable(path: str, key: str) -> None:
    """Raises UserError for the path of a file that MLflow does not take as part of a parameter's name."""
    in_file = FILE.fullmatch(path)
    typed = in_file["file"] if in_file else "f"
    if not re.fullmatch(r"[\w./ -]+", typed) or posixpath.normpath(f"x{typed}") != f"x{typed}":
        raise UserError(
            f"{key} names {path!r}, whose path cannot be logged; it must be of letters, digits, spaces and `_-./`, "
            "without // and /../ within."
        )


@dataclass
class Signature:
    """The arguments that a function accepts by name; the first ones are passed by position.

    must     for each argument that the function names: whether it has no default
    others   whether the function accepts any other argument by name (**columns)
    first    names of the arguments that are passed by position
    """

    must: dict[str, bool]
    others: bool
    first: list[str]

    def accepts(self, name: str) -> bool:
        """Whether it may be called with this argument by name."""
        return name in self.must or (self.others and name not in self.first)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The arguments that it needs, but which are not among the names."""
        return [name for name, must in self.must.items() if must and name not in names]


def signature(function: Callable[..., Any], label: str, given: int = 0) -> Signature:
    """The signature of a function that gets this number of arguments by position, and all others by name.

    Raises UserError for another argument without a default that cannot be passed by name.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return Signature({}, True, [])
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    for each in positional[given:]:
        if each.kind is each.POSITIONAL_ONLY and each.default is each.empty:
            raise UserError(f"{label} takes {each.name!r} by position; it must take its arguments by name.")
    by_name = [each for each in positional[given:] if each.kind is each.POSITIONAL_OR_KEYWORD]
    by_name += [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    return Signature(
        must={each.name: each.default is each.empty for each in by_name},
        others=any(each.kind is each.VAR_KEYWORD for each in parameters),
        first=[each.name for each in positional[:given]],
    )


def source_of(function: Callable[..., Any]) -> str:
    """The file of a definition, empty where Python does not know it, and for one of ours, whose version is logged."""
    file = defined_at(function).rpartition(":")[0]
    return "" if file.startswith(OURS) else file


def import_named(modules: str, key: str) -> None:
    """Imports the modules that a comma-separated list names, in the current folder too.

    A module that cannot be imported ends the process with one sentence.
    """
    if modules:
        look_in_working_folder()
    for name in filter(None, map(str.strip, modules.split(","))):
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # the module is code of others
            fail(UserError(f"{key} names {name!r}, which cannot be imported ({raised(error)})."))


def anywhere(path: str) -> str:
    """The path of a function as a process with another working folder finds it: that of a file is absolute."""
    in_file = FILE.fullmatch(path)
    return f"{Path(in_file['file']).expanduser().resolve()}:{in_file['name']}" if in_file else path


def defined_at(function: Callable[..., Any]) -> str:
    """File and line of a definition, empty where Python does not know them."""
    try:
        found: Any = inspect.unwrap(function)
        while isinstance(found, partial):
            found = found.func
        found = found if inspect.isroutine(found) or inspect.isclass(found) else type(found)
        return f"{inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]}"
    except (OSError, TypeError):
        return ""


def raised(error: BaseException) -> str:
    """`raised KeyError: 'level' (rewards.py:12)`, with the last line of code that belongs to no library.

    Where there is none, it is the last line of a library, in which others may have installed their code.
    """
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    installed = [(file, line) for file, line in frames if file.startswith(tuple(INSTALLED))]
    own = [each for each in frames if each not in installed and not each[0].startswith((STANDARD, OURS, "<"))]
    return f"raised {text[:300]}" + "".join(f" ({file}:{line})" for file, line in (own or installed)[-1:])
