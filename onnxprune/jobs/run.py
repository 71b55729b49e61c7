"""Jobs, looked up before they run, and kept once they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from onnxprune.errors import BadInputError
from onnxprune.jobs.checkpoint import Checkpoint
from onnxprune.jobs.cluster import Cluster
from onnxprune.jobs.job import Job, Place, Result, Shared, Work
from onnxprune.jobs.local import Here, Processes, cores


def check_place(count: int | None, cluster: str | None) -> None:
    """Raise `BadInputError` where both are given."""
    if cluster is not None and count is not None:
        raise BadInputError("--jobs counts processes of this machine; leave it out with --cluster.")


def place_of(count: int | None, cluster: str | None) -> Place:
    """count: processes of this machine, None for one per core; 1: this process alone. cluster: address of a Dask scheduler instead.

    Raises `BadInputError`.
    """
    check_place(count, cluster)
    if cluster is not None:
        return Cluster(cluster)
    count = cores() if count is None else count
    return Here() if count == 1 else Processes(count)


class Jobs:
    """Runs jobs at a place. checkpoint: where results are looked up and kept.

    computed: jobs that ran; found: results that were taken from the checkpoint. Results without a model are remembered, too.
    """

    def __init__(self, place: Place, checkpoint: Checkpoint | None = None) -> None:
        self.place, self.checkpoint = place, checkpoint
        self.computed = self.found = 0
        self._known: dict[str, Result] = {}

    def __call__(
        self,
        work: Work,
        shared: Shared,
        jobs: Sequence[Job],
        share: Callable[[float], None] = lambda done: None,
    ) -> list[Result]:
        """The results, in the order of the jobs, whatever order they were done in. share: told how much is done."""
        results = {job.key: self._known[job.key] for job in jobs if job.key in self._known}
        if self.checkpoint is not None:
            asked = ((job.key, self.checkpoint.get(job.key)) for job in jobs if job.key not in results)
            kept = {key: found for key, found in asked if found is not None}
            self.found += len(kept)
            results |= kept
        left = list({job.key: job for job in jobs if job.key not in results}.values())
        if left:
            with closing(self.place.run(work, shared, left)) as running:  # type: ignore[type-var]
                for k, found in running:
                    results[left[k].key] = found
                    self.computed += 1
                    if self.checkpoint is not None:
                        self.checkpoint.put(left[k].key, found)
                    share(len(results) / len(jobs))
        self._known |= {key: found for key, found in results.items() if found.model is None}
        return [results[job.key] for job in jobs]
