"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$CAPBENCH_CACHE, or `.cache/capbench` in the home folder."""
    return Path(os.environ.get("CAPBENCH_CACHE") or Path.home() / ".cache" / "capbench")
