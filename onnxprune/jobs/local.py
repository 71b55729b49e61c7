"""Jobs in this process, or in several of this machine by joblib."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from onnxprune.errors import WorkerLostError
from onnxprune.jobs import host
from onnxprune.jobs.job import Job, Result, Shared, Work
from onnxprune.jobs.opened import perform
from onnxprune.threads import one_thread

START = 4.0
BUSY = 0.1  # seconds that a process stays with its first task, so that every one gets one


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

    def expect(self, work: Work, count: int) -> None:
        pass

    def close(self) -> None:
        pass


class Processes:
    """count: so many processes of this machine, which stay for the next jobs. start: seconds that starting them takes.

    Jobs that were expected run there. Of others, the first of a kind runs here, and so does the rest where they are so short that starting
    processes would take longer.
    """

    def __init__(self, count: int, start: float = START) -> None:
        self.count = self.width = count
        self.start = start
        self.name = f"up to {count} processes"
        self._seconds: dict[Work, float] = {}
        self._expected: Work | None = None
        self._starting: threading.Thread | None = None
        self._sent: tuple[str, tempfile.TemporaryDirectory[str]] | None = None

    def run(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        if work is self._expected and len(jobs) > 1:
            yield from self._spread(work, shared, jobs)
            return
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

    def expect(self, work: Work, count: int) -> None:
        if self._starting is None and count > 1:
            self._expected = work
            self._starting = threading.Thread(target=_start, args=(min(count, self.count), work), daemon=True)
            self._starting.start()

    def _spread(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        self._started()
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
            self._forget()
            self._sent = shared.digest, tempfile.TemporaryDirectory(prefix="onnxprune-")
            (Path(self._sent[1].name) / "shared").write_bytes(shared.packed)
        return Path(self._sent[1].name) / "shared"

    def _started(self) -> None:
        if self._starting is not None:
            self._starting.join()

    def close(self) -> None:
        self._started()
        self._forget()

    def _forget(self) -> None:
        if self._sent is not None:
            self._sent[1].cleanup()
            self._sent = None


def _start(count: int, work: Work) -> None:
    """Start processes that know what this work needs. What goes wrong here comes to light with the first job."""
    from joblib import Parallel, delayed, parallel_config

    with suppress(Exception), parallel_config(backend="loky", inner_max_num_threads=1):
        Parallel(n_jobs=count, pre_dispatch="all")(delayed(_imported)(work) for _ in range(count))


def _imported(work: Work) -> None:
    """Whoever has read `work` has imported its module; what linear algebra takes is imported, too."""
    _keep_memory()
    with one_thread():
        time.sleep(BUSY)


def _keep_memory() -> None:
    """What a process keeps from one job to the next is no leak, for which joblib would end it, and all of that would be computed anew."""
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")


def _numbered(number: int, path: str, digest: str, work: Work, argument: object) -> tuple[int, Result]:
    _keep_memory()
    return number, perform(digest, partial(Path.read_bytes, Path(path)), work, argument)
