"""One hash over everything that decides a stage's result: code, inputs and parameters."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_IGNORED_FOLDERS = {"__pycache__"}
_IGNORED_SUFFIXES = {".pyc", ".pyo", ".pyd"}


def digest_paths(paths: Iterable[str | Path]) -> str:
    """SHA-256 over names and contents of files and folders (bytecode caches left out, as in .dvcignore).

    A path that does not exist counts as such, so that its appearance changes the digest.
    """
    total = hashlib.sha256()
    for path in sorted(Path(path) for path in paths):
        for file in _files(path):
            content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"
            total.update(f"{file.as_posix()} {content}\n".encode())
    return total.hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not _IGNORED_FOLDERS & set(file.parts) and file.suffix not in _IGNORED_SUFFIXES
    )


def fingerprint(code: Iterable[str], data: Iterable[str], params: Mapping[str, Any]) -> str:
    """SHA-256 over a stage's code files, input data and parameter values.

    Two runs with equal fingerprints compute the same, so one may go on where the other stopped.
    """
    values = json.dumps(params, sort_keys=True, default=str)
    parts = (digest_paths(code), digest_paths(data), values)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
