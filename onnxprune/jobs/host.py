"""Jobs that measure time never share a machine with others: a lock per machine and user, shared by jobs that compute, held alone by those
that measure. It is a file that the system locks, so it goes with its process, whatever ends that.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: jobs of one command still do not overlap, those of two may
    fcntl = None  # type: ignore[assignment]


def lock_path() -> Path:
    """Where the lock of this machine lies."""
    return Path(tempfile.gettempdir()) / f"onnxprune-{getattr(os, 'getuid', lambda: 0)()}.lock"


@contextmanager
def _locked(how: str) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(lock_path(), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, getattr(fcntl, how))
        yield
    finally:
        os.close(handle)


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
