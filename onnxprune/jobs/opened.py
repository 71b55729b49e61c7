"""What a process does with a job that was sent to it."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

from onnxprune.jobs import host
from onnxprune.jobs.job import Result, Work
from onnxprune.threads import one_thread

KEPT = 2
"""So many shared values stay open in a process: that of the sensitivities and that of the points or candidates."""
_opened: dict[str, Any] = {}
_one_at_a_time = threading.Lock()


def opened(digest: str, read: Callable[[], bytes]) -> Any:
    """The shared value of that hash; `read` gives its bytes where it is not open yet."""
    if digest not in _opened:
        prepare, inner = pickle.loads(read())
        if prepare is not None:
            function, arguments = prepare
            function(*arguments)
        while len(_opened) >= KEPT:
            del _opened[next(iter(_opened))]
        _opened[digest] = pickle.loads(inner)
    return _opened[digest]


def perform(digest: str, read: Callable[[], bytes], work: Work, argument: Any, alone: bool = False) -> Result:
    """One job. Jobs of one process run one after the other: they read the same values. alone: it measures time."""
    with _one_at_a_time, one_thread(), host.alone() if alone else host.shared():
        return work(opened(digest, read), argument)
