"""Seconds per stage, and progress shown."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]
Share = Callable[[float], None]


class Step(str):
    """What is under way, as a text such as "calibrate 40%".

    stage: its name. share: how much of it is done, from 0 to 1; None where nobody knows. more: what else is
    to be said of it.
    """

    stage: str
    share: float | None
    more: str

    def __new__(cls, stage: str, share: float | None = None, more: str = "") -> Step:
        step = super().__new__(cls, stage + ("" if share is None else f" {share:.0%}") + more)
        step.stage, step.share, step.more = stage, share, more
        return step


def prefixed(before: str, text: str) -> Step:
    """What is under way, said as a part of something larger."""
    if not isinstance(text, Step):
        return Step(before + text)
    return Step(before + text.stage, text.share, text.more)


def silent(stage: str) -> None:
    """No progress shown."""


def unshared(done: float) -> None:
    """No share of a stage shown."""


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
        self.progress(Step(stage))

    def share(self, done: float) -> None:
        """Show how much of the stage is done."""
        self.progress(Step(self._stage, done))

    def stop(self) -> None:
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.perf_counter() - self._since
            self._stage = ""
