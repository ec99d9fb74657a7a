"""Fixtures shared by all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import stages  # noqa: F401 - settles OpenMP's waiting before torch loads it

# isort: split
import torch

from pipeline.device import available_cores

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


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A job in the background inherits SIGINT as ignored; tests that send it need Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """Share the cores out among the processes that pytest-xdist starts; two threads at most."""
    cores = available_cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(2, cores)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes, let one begin with what takes longest, the whole graph: they end together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
