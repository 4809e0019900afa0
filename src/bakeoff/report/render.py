"""A notebook, executed on a report's folder, as one HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

from bakeoff.errors import UserError, first_line

PARAMETERS = "parameters"  # the tag of the cell after which `folder` is set
TEMPLATES = Path(__file__).parent / "templates"
# Figures keep the size that they were laid out for: to crop them would draw each a second time.
KERNEL = ["--IPKernelApp.log_level=40", "--InlineBackend.print_figure_kwargs={'bbox_inches': None}"]


def execute(notebook: Path, folder: Path) -> Any:
    """Runs a notebook in a kernel of its own, with `folder` as its parameter; returns it with its outputs.

    A cell that raises loses only its own output: see `faults`. Raises UserError where the first one does, which reads
    the study, and where the kernel ends.
    """
    book = nbformat.read(notebook, as_version=4)
    at = next((i for i, c in enumerate(book.cells) if PARAMETERS in c.metadata.get("tags", [])), -1)
    # The id is ours, since nbformat draws one: the same store gives the same page.
    book.cells.insert(at + 1, nbformat.v4.new_code_cell(f"folder = {str(folder.resolve())!r}", id="folder"))
    here = {"metadata": {"path": str(Path.cwd())}}
    options: Any = {"extra_arguments": KERNEL, "timeout": 600, "allow_errors": True, "resources": here}
    try:
        NotebookClient(book, kernel_name="python3", **options).execute()
    except (CellTimeoutError, DeadKernelError) as error:
        raise UserError(f"{notebook} failed: {first_line(error)}") from error
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]  # warnings are for developers
    first = [cell for cell in book.cells[at + 2 :] if cell.cell_type == "code"][:1]
    for output in (output for cell in first for output in cell.outputs if output.output_type == "error"):
        raise UserError(f"{notebook} failed: {reason(output)}")
    return book


def reason(error: Any) -> str:
    """The error of an output, in a few words."""
    return " ".join(f"{error.ename}: {error.evalue}".split())[:300]


def faults(book: Any) -> list[str]:
    """A sentence on each cell that raised, in whose place the page then shows it."""
    found = []
    for heading, cell in headed(book):
        for number, output in enumerate(cell.get("outputs", [])):
            if output.output_type == "error":
                found.append(f"a part of '{heading}': these runs lack its data ({reason(output)})")
                text = f"<p><strong>Left out:</strong> {html.escape(found[-1])}.</p>"
                cell.outputs[number] = nbformat.v4.new_output("display_data", {"text/html": text})
    return found


def headed(book: Any) -> Iterator[tuple[str, Any]]:
    """Every cell with the heading above it or in it."""
    heading = "figure"
    for cell in book.cells:
        outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
        texts = [cell.source] if cell.cell_type == "markdown" else [data.get("text/markdown", "") for data in outputs]
        heading = [heading, *re.findall(r"^#+ (.+)$", "\n".join(texts), re.MULTILINE)][-1]
        yield heading, cell


def figures(book: Any) -> Iterator[tuple[str, bytes]]:
    """File name and content of every figure of an executed notebook, SVG and PNG, named after the heading above it."""
    number = 0
    for heading, cell in headed(book):
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            number += "image/svg+xml" in data
            name = f"{number:02d}_{re.sub(r'[^a-z0-9]+', '_', heading.lower()).strip('_')}"
            if "image/svg+xml" in data:
                yield f"{name}.svg", data["image/svg+xml"].encode()
            if "image/png" in data:
                yield f"{name}.png", base64.b64decode(data["image/png"])


def to_html(book: Any, title: str, command: str = "", notebook: str = "") -> str:
    """The page: outputs and text, images inside, and a table of contents.

    Folded beside each output are `command`, which gives the page, and the code of the cell in the notebook.
    """
    exporter = HTMLExporter(
        template_name="page",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    for heading, cell in headed(book):
        for output in (each for each in cell.get("outputs", []) if "image/svg+xml" in each.get("data", {})):
            text = output["data"].get("text/plain", "<")
            output.metadata["alt"] = heading if text.startswith("<") else text  # `<Figure size …>`: of a user's own
    book.metadata.update(title=title, command=command, notebook=notebook)
    body: str = exporter.from_notebook_node(book)[0]
    return with_contents(body)


def with_contents(page: str) -> str:
    """A page with links to its sections below its title."""
    headings = re.findall(r'<h2 id="([^"]+)">(.*?)(?:<a class="anchor-link"|</h2>)', page)
    links = " ".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in headings)
    top = "</h1>" if "</h1>" in page else "<main>"
    return page.replace(top, f"{top}\n<nav>{links}</nav>", 1) if links else page
