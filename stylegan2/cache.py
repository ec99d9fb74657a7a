"""The folder for what can be had again: downloads, imported networks and the like."""

import os
from pathlib import Path

CACHE_VARIABLE = "STYLEGAN2_CACHE"


def cache_folder() -> Path:
    """Where they are kept: $STYLEGAN2_CACHE, else stylegan2 in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylegan2"
