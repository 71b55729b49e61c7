"""How far a command is: on a terminal a line that changes, in a log a line a minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxprune.cli.common import ERR
from onnxprune.clock import Progress, Step

LONG = 10.0
"""Seconds after which a stage is worth an estimate."""
PERIODS = {True: 1.0, False: 60.0}
"""Seconds between two lines, on a terminal and in a log."""


class Display:
    """Says the stage that is under way, its share, and how long it may still take.

    show: prints a line. period: seconds between two lines. now: a clock, in seconds. changes: show every stage and share at once, too.
    """

    def __init__(
        self,
        show: Callable[[str], None],
        period: float,
        now: Callable[[], float] = time.monotonic,
        changes: bool = False,
    ) -> None:
        self.show, self.period, self.now, self.changes = show, period, now, changes
        self._step = Step("")
        self._since = self._shown = now()

    def __call__(self, text: str) -> None:
        """The program's word: a stage has begun, or so much of it is done."""
        step = text if isinstance(text, Step) else Step(text)
        if step.stage != self._step.stage:
            self._since = self.now()
        self._step = step
        if self.changes:
            self.show(self.line())

    def tick(self) -> None:
        """Called again and again: a line if it is time for one."""
        if self._step and self.now() - self._shown >= self.period:
            self._shown = self.now()
            self.show(self.line())

    def line(self) -> str:
        """Such as "calibrate 40%, for 20 s, about 30 s left"."""
        passed, share = self.now() - self._since, self._step.share
        text = str(self._step)
        if passed < LONG:
            return text
        left = f", about {_duration(passed * (1 - share) / share)} left" if share else ""
        return f"{text}, for {_duration(passed)}{left}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


@contextmanager
def progress(is_silent: bool) -> Iterator[Progress]:
    """Shows how far the program is, on the console for errors."""
    if is_silent:
        yield lambda stage: None
        return
    if ERR.is_terminal:
        with ERR.status("load") as status, _ticking(Display(status.update, PERIODS[True], changes=True)) as display:
            yield display
        return
    with _ticking(Display(lambda line: ERR.print(f"onnxprune: {line}", markup=False), PERIODS[False])) as display:
        yield display


@contextmanager
def _ticking(display: Display) -> Iterator[Display]:
    """The display ticks in a thread, so that a stage that says nothing is still heard of."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(1.0):
            display.tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield display
    finally:
        done.set()
        thread.join()
