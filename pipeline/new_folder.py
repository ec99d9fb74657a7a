"""A folder of results that is there completely or not at all."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes its place when the block ends without an error.

    What `target` held before is deleted then, and not touched before. After an error or an interruption
    (Ctrl-C, SIGTERM) everything is as it was, except after SIGKILL, which leaves `.NAME.PID.partial`.

    Args:
        target: a folder, a link to one, or nothing yet; folders above it are created.

    Raises:
        OSError: a folder cannot be written.
        KeyboardInterrupt: also on SIGTERM.
    """
    target = target.resolve()
    staged, old = (
        target.with_name(f".{target.name}.{os.getpid()}.{state}") for state in ("partial", "replaced")
    )
    created = [folder for folder in target.parents if not folder.exists()]  # innermost first
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        staged.mkdir(parents=True)
        yield staged
        _swap(staged, target, old)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in created:
            with suppress(OSError):  # somebody else has written into it meanwhile
                folder.rmdir()
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _swap(staged: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        staged.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
