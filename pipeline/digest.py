"""One hash over files and folders, by which a model's config.json names the data it was trained on."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_IGNORED_FOLDERS = {"__pycache__"}
_IGNORED_SUFFIXES = {".pyc", ".pyo", ".pyd"}


def digest_paths(paths: Iterable[str | Path], root: Path = Path()) -> str:
    """SHA-256 over names and contents of files and folders (bytecode caches left out, as in .dvcignore).

    A path that does not exist counts as such, so that its appearance changes the digest.

    Args:
        paths: relative to `root`; their names count as they stand here.
        root: the project's folder.
    """
    total = hashlib.sha256()
    for path in sorted(Path(path) for path in paths):
        for file in _files(root, path):
            place = root / file
            content = hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else "missing"
            total.update(f"{file.as_posix()} {content}\n".encode())
    return total.hexdigest()


def _files(root: Path, path: Path) -> list[Path]:
    if not (root / path).is_dir():
        return [path]
    files = [path / file.relative_to(root / path) for file in (root / path).rglob("*") if file.is_file()]
    return sorted(
        file
        for file in files
        if not _IGNORED_FOLDERS & set(file.parts) and file.suffix not in _IGNORED_SUFFIXES
    )
