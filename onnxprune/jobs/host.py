"""Jobs that measure time never share a machine with others: a lock per machine and user, shared by jobs that compute, held alone by those
that measure. It is a file that the system locks, so it goes with its process, whatever ends that.

Whoever waits to be alone comes before those that ask later, so that many short jobs cannot keep it waiting.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # Windows: jobs of one command still do not overlap, those of two may
    fcntl = None  # type: ignore[assignment]

How = Literal["LOCK_SH", "LOCK_EX"]
_held = threading.local()


def lock_path() -> Path:
    """Where the lock of this machine lies; beside it, what those hold that wait for it."""
    return Path(tempfile.gettempdir()) / f"onnxprune-{getattr(os, 'getuid', lambda: 0)()}.lock"


@contextmanager
def _locked(how: How) -> Iterator[None]:
    """Within itself it does nothing, as this thread has the lock already."""
    before: How | None = getattr(_held, "how", None)
    if before is not None:
        if before == "LOCK_SH" and how == "LOCK_EX":
            raise RuntimeError("A job that computes beside others cannot measure time: it would wait for itself.")
        yield
        return
    handles = _waited(how)
    _held.how = how
    try:
        yield
    finally:
        _held.how = None
        for handle in handles:
            os.close(handle)


def _waited(how: How) -> list[int]:
    """The lock's handle, once it is held; none where the system has no such locks, or there is no place for them."""
    if fcntl is None:
        return []
    handles: list[int] = []
    try:
        path = lock_path()
        for each in (path, path.with_name(f"{path.name}.gate")):
            handles.append(os.open(each, os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(handles[1], fcntl.LOCK_EX)
        fcntl.flock(handles[0], getattr(fcntl, how))
        os.close(handles.pop())
    except OSError:
        for handle in handles:
            os.close(handle)
        return []
    except BaseException:  # interrupted while it waits
        for handle in handles:
            os.close(handle)
        raise
    return handles


@contextmanager
def shared() -> Iterator[None]:
    """Others may compute beside this, but nothing is timed."""
    with _locked("LOCK_SH"):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """No job of onnxprune's runs on this machine meanwhile, of this user."""
    with _locked("LOCK_EX"):
        yield
