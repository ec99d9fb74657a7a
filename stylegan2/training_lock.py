"""One training in a folder at a time: two would overwrite each other's results."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import filelock

from stylegan2.errors import StyleGAN2Error

LOCK = ".training.lock"

_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())

log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_training(*folders: Path) -> Iterator[None]:
    """Keep other processes and threads from training into folders inside a `with` block.

    The folders are created where need be; what stays empty is removed at the end, and so are the lock files.
    Who holds a folder may ask for it again inside. The lock of a process that was killed does not hold.

    Args:
        folders: that results, or the state of a training, are written to.

    Raises:
        StyleGAN2Error: another process trains there.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(_locked(folder))
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    place = folder.resolve()
    if place in _held.get():
        yield
        return
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StyleGAN2Error(
            f"another process trains here: it holds {folder / LOCK}; wait for it, or name another folder"
        ) from None
    except NotImplementedError as error:
        log.warning("%s cannot be locked (%s): see to it that nobody else trains there", folder, error)
    token = _held.set(_held.get() | {place})
    try:
        yield
    finally:
        _held.reset(token)
        # Removed while it is held: whoever has opened it by then gets no lock, or notices that it is gone.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
        if os.name == "nt":  # removes no open files
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
        for path in created:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
