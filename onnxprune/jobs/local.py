"""Jobs in this process, or in several of this machine by joblib."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from onnxprune.errors import WorkerLostError
from onnxprune.jobs import host
from onnxprune.jobs.job import Job, Result, Shared, Work
from onnxprune.jobs.opened import perform
from onnxprune.threads import one_thread

START = 6.0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Here:
    """One job after the other, in this process."""

    name, width = "this process", 1

    def run(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        for k, job in enumerate(jobs):
            with one_thread(), host.shared():
                found = work(shared.value, job.argument)
            yield k, found

    def close(self) -> None:
        pass


class Processes:
    """count: so many processes of this machine, which stay for the next jobs. start: seconds that starting them takes.

    The first job of a kind runs here; the others do, too, where they are so short that starting processes would take longer.
    """

    def __init__(self, count: int, start: float = START) -> None:
        self.count = self.width = count
        self.start = start
        self.name = f"up to {count} processes"
        self._seconds: dict[Work, float] = {}
        self._sent: tuple[str, tempfile.TemporaryDirectory[str]] | None = None

    def run(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        done = 0
        if work not in self._seconds:
            begin = time.perf_counter()
            first = list(Here().run(work, shared, jobs[:1]))
            self._seconds[work], done = time.perf_counter() - begin, 1
            yield from first
        left = len(jobs) - done
        spared = self._seconds[work] * (left - -(-left // self.count))
        there = self._spread if spared > self.start else Here().run
        for k, found in there(work, shared, jobs[done:]):
            yield k + done, found

    def _spread(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        path = self._path(shared)
        tasks = (delayed(_numbered)(k, str(path), shared.digest, work, job.argument) for k, job in enumerate(jobs))
        try:
            with parallel_config(backend="loky", inner_max_num_threads=1):
                runs = Parallel(n_jobs=self.count, return_as="generator_unordered", pre_dispatch="all")
                yield from runs(tasks)
        except TerminatedWorkerError:
            raise WorkerLostError(
                "A process that ran a job has ended, mostly because memory was short; give fewer --jobs. "
                "With --checkpoint, what was done is kept."
            ) from None

    def _path(self, shared: Shared) -> Path:
        """Where processes find what is shared: a file that is written once, and stays until something else is shared."""
        if self._sent is None or self._sent[0] != shared.digest:
            self.close()
            self._sent = shared.digest, tempfile.TemporaryDirectory(prefix="onnxprune-")
            (Path(self._sent[1].name) / "shared").write_bytes(shared.packed)
        return Path(self._sent[1].name) / "shared"

    def close(self) -> None:
        if self._sent is not None:
            self._sent[1].cleanup()
            self._sent = None


def _numbered(number: int, path: str, digest: str, work: Work, argument: object) -> tuple[int, Result]:
    return number, perform(digest, partial(Path.read_bytes, Path(path)), work, argument)
