"""Jobs on a Dask cluster.

`distributed` directly, not joblib's backend for it: here a job is named by the hash of what it depends on, so that the cluster itself
runs none twice, what is shared is sent again where the workers that had it are gone, and versions are compared first.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from typing import Any

from onnxprune.errors import BadInputError, WorkerLostError
from onnxprune.jobs.job import Job, Result, Shared, Work
from onnxprune.jobs.opened import KEPT, perform
from onnxprune.version import __version__

PATIENCE = 10.0
"""Seconds to wait for the scheduler."""
LOOK = 5.0
"""Seconds after which it is looked whether hosts are still there."""
PAUSE = 0.05
"""Seconds between two looks whether a time is there: rarely, as it may be measured on this very machine."""
ROUNDS = 4
"""How often jobs are sent whose workers were lost with what they had been given."""
SAME = ("onnxprune", "onnxruntime", "onnx", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Of what results depend on, in this process."""
    found = {"onnxprune": __version__, "python": platform.python_version()}
    for name in SAME[1:]:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Cluster:
    """address: of a running scheduler, such as `tcp://10.0.0.5:8786`.

    Raises `BadInputError` where it is not reached within `PATIENCE`, has no workers, or workers with other versions.
    """

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        try:
            import distributed
        except ImportError:
            raise BadInputError("--cluster needs Dask; install it with: pip install 'onnxprune[cluster]'.") from None
        self.address, self.name = address, f"cluster {address}"
        self._sent: dict[str, Any] = {}
        try:
            self.client: Any = distributed.Client(address, timeout=patience, set_as_default=False)
        except (OSError, ValueError) as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise BadInputError(
                f"--cluster {address} was not reached within {patience:g} s ({reason}); start it with 'dask scheduler' and 'dask worker "
                f"{address}', or check the address."
            ) from None
        try:
            self._check_workers()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster as it is."""
        self._sent.clear()
        with suppress(Exception):
            self.client.close(timeout=5)

    def _check_workers(self) -> None:
        if not self.client.scheduler_info(n_workers=-1)["workers"]:
            raise BadInputError(
                f"--cluster {self.address} has no workers; start one with 'dask worker {self.address} --nthreads 1'."
            )
        own = versions()
        found = self.client.run(versions, on_error="return")
        for worker, theirs in found.items():
            if isinstance(theirs, BaseException):
                raise BadInputError(
                    f"The worker {worker} has no onnxprune {__version__} ({type(theirs).__name__}: {theirs}); install the same there."
                )
            _same(theirs, own, worker)

    def run(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        left = dict(enumerate(jobs))
        for _ in range(ROUNDS):
            for k, found in self._round(work, shared, left):
                del left[k]
                yield k, found
            if not left:
                return
            self._sent.pop(shared.digest, None)
        raise WorkerLostError(
            f"Workers of {self.name} were lost again and again before {len(left)} jobs were done, mostly because memory was short. "
            "With --checkpoint, what was done is kept."
        )

    def _round(self, work: Work, shared: Shared, jobs: dict[int, Job]) -> Iterator[tuple[int, Result]]:
        """Those that were done; jobs whose worker took what is shared with it are left for the next round."""
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        with self._submitted(work, shared, jobs) as futures:
            for future in as_completed(list(futures), loop=self.client.loop):
                try:
                    found = future.result()
                except (KilledWorker, CancelledError):
                    continue
                future.release()  # a result that is here is not to be computed again where its worker is lost
                yield futures[future], found

    @contextmanager
    def _submitted(
        self, work: Work, shared: Shared, jobs: dict[int, Job], hosts: Sequence[str] = ()
    ) -> Iterator[dict[Any, int]]:
        """Futures of jobs, with their numbers. hosts: of those that measure time, where they may run; else anywhere."""
        data = self._data(shared)
        own, where = versions(), {"workers": list(hosts), "allow_other_workers": False} if hosts else {}
        futures = {
            self.client.submit(
                _there, data, shared.digest, work, job.argument, own, bool(hosts), key=f"onnxprune-{job.key}", **where
            ): k
            for k, job in jobs.items()
        }
        try:
            yield futures
        finally:
            self.client.cancel([f for f in futures if not f.done()], force=False)
            for future in futures:
                future.release()

    def _data(self, shared: Shared) -> Any:
        """What is shared, on the workers: it is sent once to each, and again where those that had it are gone. It is named by its content,
        so a second command need not send it.
        """
        known = self._sent.pop(shared.digest, None)
        if known is None or known.status != "finished":
            known = self.client.scatter([shared.packed], broadcast=True, hash=True)[0]
        self._sent[shared.digest] = known
        while len(self._sent) > KEPT:
            del self._sent[next(iter(self._sent))]
        return known

    def expect(self, work: Work, count: int) -> None:
        """Its workers run already."""

    # -- time

    @property
    def width(self) -> int:
        return max(1, len(self._workers()))

    def _workers(self) -> dict[str, str]:
        """The host of each worker, by its address."""
        return {name: w["host"] for name, w in self.client.scheduler_info(n_workers=-1)["workers"].items()}

    def alike(self, kind: Callable[[], Any]) -> list[str]:
        """Hosts for all of whose workers `kind` gives what it gives here."""
        own, hosts = kind(), self._workers()
        found = self.client.run(kind, on_error="return")
        other = {host for worker, host in hosts.items() if found.get(worker) != own}
        return sorted({*hosts.values()} - other)

    def measure(
        self, work: Work, shared: Shared, jobs: Sequence[Job], hosts: Sequence[str]
    ) -> Iterator[tuple[int, Result]]:
        """Jobs that measure time, one at a time on each of these hosts. Those that are not given were lost with their host."""
        from distributed.scheduler import KilledWorker

        with self._submitted(work, shared, dict(enumerate(jobs)), hosts) as futures:
            left, looked = list(futures), time.monotonic()
            while left:
                done = [f for f in left if f.done()]
                left = [f for f in left if f not in done]
                for future in done:
                    with suppress(KilledWorker, CancelledError):
                        found = future.result()
                        future.release()
                        yield futures[future], found
                if not done and time.monotonic() - looked > LOOK:
                    if not {*hosts} & {*self._workers().values()}:  # such a job would wait for ever
                        return
                    looked = time.monotonic()
                elif not done:
                    time.sleep(PAUSE)


def _same(theirs: dict[str, str], own: dict[str, str], worker: str) -> None:
    for name in SAME:
        if theirs.get(name) != own.get(name):
            raise BadInputError(
                f"The worker {worker} has {name} {theirs.get(name, '(not installed)')}, and this machine {own.get(name)}: results would "
                "differ; install the same version there."
            )


def _there(data: bytes, digest: str, work: Work, argument: Any, wanted: dict[str, str], alone: bool) -> Result:
    """On the worker. wanted: versions of the client. alone: the job measures time."""
    _same(versions(), wanted, platform.node())  # it may have come after the others were asked
    return perform(digest, partial(bytes, data), work, argument, alone)
