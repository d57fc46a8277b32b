"""Work in the background that can be watched and cancelled. Knows nothing of widgets or training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Generic, Literal, TypeVar

Event = TypeVar("Event")
Outcome = Literal["finished", "cancelled", "failed"]


class Job(Generic[Event]):
    """Drives a generator of events, in a thread (`start`) or right here (`run`).

    Every way in which the work may end is reported; an error never just ends the thread.

    Args:
        work: makes the generator; to cancel, it is closed between two events.
        on_event: is told of events, at most one per `interval`, and of the last one.
        on_end: is told how it ended.
        important: events that must not be left out, however fast they come.
        interval: seconds.

    Attributes:
        error: what went wrong in the last run, or None.
    """

    def __init__(
        self,
        work: Callable[[], Generator[Event, None, None]],
        on_event: Callable[[Event], None],
        on_end: Callable[[Outcome], None],
        *,
        important: Callable[[Event], bool] = lambda event: False,
        interval: float = 0.1,
    ) -> None:
        self.error: Exception | None = None
        self._work, self._on_event, self._on_end = work, on_event, on_end
        self._important, self._interval = important, interval
        self._cancelled = threading.Event()
        self._running = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self._running.locked()

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop since it last began."""
        return self._cancelled.is_set()

    def start(self) -> None:
        """Run in a thread of its own; does nothing if it is under way."""
        if self._claim():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def cancel(self) -> None:
        """Ask it to stop after the event under way."""
        self._cancelled.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, for at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def run(self) -> Outcome:
        """Run here and now; Ctrl-C cancels.

        Raises:
            RuntimeError: if it is under way already.
        """
        if not self._claim():
            raise RuntimeError("this job is running already.")
        return self._run()

    def _claim(self) -> bool:
        """Become the one run under way. Not left to the thread, so that a `cancel` right after `start` counts."""
        if not self._running.acquire(blocking=False):
            return False
        self._cancelled.clear()
        return True

    def _run(self) -> Outcome:
        self.error = None
        try:
            outcome = self._drive()
        finally:
            self._running.release()
        self._on_end(outcome)
        return outcome

    def _drive(self) -> Outcome:
        try:
            with closing(self._work()) as events:
                return self._pass_on(events)
        except KeyboardInterrupt:
            return "cancelled"
        except Exception as error:  # it is shown: what else may go wrong in the work is not for this class to know
            self.error = error
            return "failed"

    def _pass_on(self, events: Generator[Event, None, None]) -> Outcome:
        told, waiting = -self._interval, None
        for event in events:
            waiting = event
            now = time.monotonic()
            if now - told >= self._interval or self._important(event):
                told, waiting = now, None
                self._on_event(event)
            if self._cancelled.is_set():
                return "cancelled"
        if waiting is not None:
            self._on_event(waiting)
        return "finished"
