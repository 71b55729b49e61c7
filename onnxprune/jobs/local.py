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

START = 4.0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Here:
    """One job after the other, in this process."""

    name = "this process"

    def run(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        for k, job in enumerate(jobs):
            with one_thread(), host.shared():
                found = work(shared.value, job.argument)
            yield k, found


class Processes:
    """count: so many processes of this machine, which stay for the next jobs. start: seconds that starting them takes.

    The first job runs here; the others do, too, where they are so short that starting processes would take longer.
    """

    def __init__(self, count: int, start: float = START) -> None:
        self.count, self.start = count, start
        self.name = f"up to {count} processes"

    def run(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        begin = time.perf_counter()
        yield from Here().run(work, shared, jobs[:1])
        spared = (time.perf_counter() - begin) * (len(jobs) - 1) * (1 - 1 / self.count)
        there = self._spread if spared > self.start else Here().run
        for k, found in there(work, shared, jobs[1:]):
            yield k + 1, found

    def _spread(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            path = Path(folder) / "shared"
            path.write_bytes(shared.packed)
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


def _numbered(number: int, path: str, digest: str, work: Work, argument: object) -> tuple[int, Result]:
    return number, perform(digest, partial(Path.read_bytes, Path(path)), work, argument)
