"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

import stages  # noqa: F401 - settles OpenMP's waiting before torch loads it

# isort: split
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The development data folder beside the checkout (real DRIVE, reference numbers); skips without it."""
    folder = Path(os.environ.get("VESSELFORGE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"development data folder {folder} is absent (set VESSELFORGE_SHARED to use another)")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
