"""Turns Ctrl-C and SIGTERM into a wish that is granted at the next safe point."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def deferred_interruption(notice: str) -> Iterator[Interruption]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one has its usual effect.

    A signal that is ignored stays ignored, and a handler that is not Python's stays in charge. Outside the
    main thread, where Python allows no handlers, nothing is changed.

    Args:
        notice: line for the standard error stream at the first signal: what happens now.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler is not None and handler != signal.SIG_IGN:
            previous[number] = handler

    def note(number: int, frame: FrameType | None) -> None:
        if not interruption:
            _announce(notice)
        interruption.requested = True
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _announce(notice: str) -> None:
    """Write a line to standard error unbuffered: a signal may come while Python is writing there."""
    with suppress(OSError):  # a closed terminal is no reason to lose the state
        os.write(2, f"\n{notice}\n".encode())
