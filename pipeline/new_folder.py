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
    (Ctrl-C, SIGTERM) everything is as it was; both signals are ignored while the finished folder takes its
    place and the old one is deleted, so that no interruption is reported of results that stand.

    Beside `target` stay `.NAME.PID.partial` (unfinished results) after SIGKILL, and `.NAME.PID.replaced`
    (what `target` held) after SIGKILL in the last moments or where the file system refuses to delete it;
    where there is no `target` beside that one, it is to be named so again.

    Args:
        target: a folder, a link to one, or nothing yet; folders above it are created.

    Raises:
        OSError: a folder cannot be written.
        KeyboardInterrupt: on Ctrl-C, and on SIGTERM.
    """
    target = target.resolve()
    staged, old = (
        target.with_name(f".{target.name}.{os.getpid()}.{state}") for state in ("partial", "replaced")
    )
    created = [folder for folder in target.parents if not folder.exists()]  # innermost first
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        staged.mkdir(parents=True)
        yield staged
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        _swap(staged, target, old)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in created:
            with suppress(OSError):  # somebody else has written into it meanwhile
                folder.rmdir()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
