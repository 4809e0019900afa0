"""What the site has beside the files of docs/: README.md as its first page, and the pages that reports/ holds."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Adds the first page, the list of the studies' pages, and those pages."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    pages = sorted((ROOT / "reports").glob("*.html"))
    links = "\n".join(f"- [{page.stem}](reports/{page.name})" for page in pages)
    none = (
        "This site was built without one. `bakeoff-report STUDY` writes a page to `reports/`, and `make site` adds it."
    )
    listed = f"# Pages of studies\n\n{links or none}\n"
    files.append(File.generated(config, "index.md", content=first))
    files.append(File.generated(config, "pages.md", content=listed))
    for page in pages:
        files.append(File.generated(config, f"reports/{page.name}", abs_src_path=str(page)))
    return files
