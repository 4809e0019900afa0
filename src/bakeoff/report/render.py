"""A notebook, executed, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from bakeoff.errors import UserError

PARAMETERS = "parameters"  # the tag of the cell that `parameters` are set after


@contextmanager
def kernel() -> Iterator[AsyncKernelManager]:
    """A Python in which notebooks run one after another: it imports everything once, while the store is being read."""
    manager = AsyncKernelManager(kernel_name="python3")
    options = {
        "IPKernelApp.log_level": 40,
        "IPKernelApp.exec_lines": "import bakeoff.report.across_seeds, mlflow.store.tracking.sqlalchemy_store",
        "InlineBackend.print_figure_kwargs": {"bbox_inches": None},  # cropping draws a figure twice; they are laid out
    }
    run_sync(manager.start_kernel)(extra_arguments=[f"--{option}={value}" for option, value in options.items()])
    try:
        yield manager
    finally:
        run_sync(manager.shutdown_kernel)(now=True)


def execute(
    notebook: Path, parameters: dict[str, Any], manager: AsyncKernelManager, show: Callable[[str], None]
) -> Any:
    """Runs a notebook with values for its parameters; returns it with outputs, raises UserError where it fails.

    Values may be any object that can be pickled, a study's frames too: what is read already is not read again.
    """
    book = nbformat.read(notebook, as_version=4)
    at = next((i for i, c in enumerate(book.cells) if PARAMETERS in c.metadata.get("tags", [])), -1)
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        pickle.dump(parameters, file)
        file.flush()
        given = f"import pandas\n\nglobals().update(pandas.read_pickle({file.name!r}))"
        book.cells.insert(at + 1, code_cell("given", given))
        book.cells.insert(0, code_cell("reset", "%reset -f"))  # of what an earlier notebook left
        run_cells(book, notebook.name, manager, show)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]  # warnings are for developers
    return book


def code_cell(name: str, source: str) -> Any:
    """A cell to insert; nbformat draws ids, but the same store makes the same page."""
    return nbformat.v4.new_code_cell(source, id=name)


def run_cells(book: Any, name: str, manager: AsyncKernelManager, show: Callable[[str], None]) -> None:
    """Runs the cells of a notebook; raises UserError with the last line of what failed."""
    client = NotebookClient(book, km=manager, timeout=600, resources={"metadata": {"path": str(Path.cwd())}})
    client.on_cell_start = lambda cell, cell_index: show(f"cell {cell_index + 1} of {len(book.cells)}")
    try:
        client.execute()
    except CellExecutionError as error:
        last = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1]
        raise UserError(f"analysis/{name} failed: {last}") from error
    finally:
        if client.kc is not None:
            client.kc.stop_channels()


def figures(book: Any) -> Iterator[tuple[str, bytes]]:
    """File name and content of every figure of an executed notebook, as SVG and PNG, named after the heading above."""
    heading, number = "figure", 0
    for cell in book.cells:
        for text in [cell.source] if cell.cell_type == "markdown" else shown_markdown(cell):
            titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            heading = titles[-1] if titles else heading
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            number += "image/svg+xml" in data
            name = f"{number:02d}_{re.sub(r'[^a-z0-9]+', '_', heading.lower()).strip('_')}"
            if "image/svg+xml" in data:
                yield f"{name}.svg", data["image/svg+xml"].encode()
            if "image/png" in data:
                yield f"{name}.png", base64.b64decode(data["image/png"])


def shown_markdown(cell: Any) -> list[str]:
    """The Markdown that a code cell displayed."""
    texts = [output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", [])]
    return [text if isinstance(text, str) else "".join(text) for text in texts]


def to_html(book: Any, title: str) -> str:
    """The page: outputs and text without code, images inside, no reference to any server."""
    exporter = HTMLExporter(
        template_name="lab", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = exporter.mermaid_js_url = ""
    book.metadata["title"] = title
    body: str = exporter.from_notebook_node(book)[0]
    body = re.sub(
        r'<script[^>]*src="(?:https?:)?//[^"]*"[^>]*>\s*</script>|<script[^>]*src=""[^>]*>\s*</script>', "", body
    )
    return re.sub(r'<script type="module">.*?</script>', "", body, flags=re.DOTALL)
