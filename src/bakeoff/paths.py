"""Where the files that travel with the package are: conf/, sweeps/ and analysis/.

In a checkout they stand beside src/; in a wheel they are inside the package.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1]
CONF = ROOT / "conf"
SWEEPS = ROOT / "sweeps"
ANALYSIS = ROOT / "analysis"


def cache() -> Path:
    """The folder that keeps supervised starts and fetched weights: $BAKEOFF_CACHE or ~/.cache/bakeoff."""
    return Path(os.environ.get("BAKEOFF_CACHE", "~/.cache/bakeoff")).expanduser()
