"""The signals that ask a long piece of work to stop: at once, or when what is at hand is finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from capbench.base.errors import StoppedError

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # cluster schedulers send the last two before a time limit


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within it, the first of STOP_SIGNALS only sets what the function returns; a second SIGINT raises.

    No request is lost: its end raises StoppedError where a signal came and nothing else was raised.
    In a thread other than the main one, where Python handles no signals, the function returns False.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(number)

    with _handled(note):
        yield lambda: bool(received)
    if received:
        raise StoppedError


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Within it, the first of STOP_SIGNALS raises StoppedError: around work that nothing is lost of."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # the others must not disturb the cleaning up
            raise StoppedError
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    with _handled(stop):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
