"""Seconds per stage, and progress shown."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """No progress shown."""


class Clock:
    """Seconds per stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._since = 0.0

    def __call__(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self.progress(stage)

    def share(self, done: float) -> None:
        """Show how much of the stage is done."""
        self.progress(f"{self._stage} {done:.0%}")

    def stop(self) -> None:
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.perf_counter() - self._since
            self._stage = ""
