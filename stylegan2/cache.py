"""The folder for what can be had again: downloads, imported networks and the like."""

import contextlib
import os
from pathlib import Path

CACHE_VARIABLE = "STYLEGAN2_CACHE"


def cache_folder() -> Path:
    """Where they are kept: $STYLEGAN2_CACHE, else stylegan2 in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylegan2"


def folder_sizes(folder: Path) -> dict[str, int]:
    """Bytes in each entry of a folder, by its name; files that vanish meanwhile count as nothing."""
    return {path.name: _size(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += file.lstat().st_size if not file.is_dir() else 0
    return total
