"""A notebook, executed, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from bakeoff.errors import UserError

PARAMETERS = "parameters"  # the tag of the cell that `parameters` are set after


def execute(notebook: Path, parameters: dict[str, Any], show: Callable[[str], None]) -> Any:
    """Runs a notebook with values for its parameters; returns it with outputs, raises UserError where it fails."""
    book = nbformat.read(notebook, as_version=4)
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    at = next((i for i, c in enumerate(book.cells) if PARAMETERS in c.metadata.get("tags", [])), -1)
    given = nbformat.v4.new_code_cell("\n".join(lines))
    given["id"] = "given"  # nbformat draws ids: the same store makes the same page
    book.cells.insert(at + 1, given)
    client = NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}})
    client.extra_arguments = ["--IPKernelApp.log_level=40"]
    client.on_cell_start = lambda cell, cell_index: show(f"cell {cell_index + 1} of {len(book.cells)}")
    try:
        client.execute()
    except CellExecutionError as error:
        last = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1]
        raise UserError(f"analysis/{notebook.name} failed: {last}") from error
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]  # warnings are for developers
    return book


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
