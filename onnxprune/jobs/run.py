"""Jobs, looked up before they run, and kept once they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from onnxprune.errors import BadInputError
from onnxprune.jobs.checkpoint import Checkpoint
from onnxprune.jobs.cluster import Cluster
from onnxprune.jobs.job import Job, Place, Result, Shared, Work
from onnxprune.jobs.local import Here, Processes, cores


def place_of(count: int | None, cluster: str | None) -> Place:
    """count: processes of this machine, None for one per core; 1: this process alone. cluster: address of a Dask scheduler instead.

    Raises `BadInputError`.
    """
    if cluster is not None:
        if count is not None:
            raise BadInputError("--jobs counts processes of this machine; leave it out with --cluster.")
        return Cluster(cluster)
    count = cores() if count is None else count
    return Here() if count == 1 else Processes(count)


class Jobs:
    """Runs jobs at a place. checkpoint: where results are looked up and kept.

    computed: jobs that ran; found: results that were taken from the checkpoint.
    """

    def __init__(self, place: Place, checkpoint: Checkpoint | None = None) -> None:
        self.place, self.checkpoint = place, checkpoint
        self.computed = self.found = 0

    def __call__(
        self,
        work: Work,
        shared: Shared,
        jobs: Sequence[Job],
        share: Callable[[float], None] = lambda done: None,
    ) -> list[Result]:
        """The results, in the order of the jobs, whatever order they were done in. share: told how much is done."""
        results: dict[str, Result] = {}
        if self.checkpoint is not None:
            known = ((job.key, self.checkpoint.get(job.key)) for job in jobs)
            results = {key: found for key, found in known if found is not None}
        self.found += len(results)
        left = list({job.key: job for job in jobs if job.key not in results}.values())
        if left:
            with closing(self.place.run(work, shared, left)) as running:  # type: ignore[type-var]
                for k, found in running:
                    results[left[k].key] = found
                    self.computed += 1
                    if self.checkpoint is not None:
                        self.checkpoint.put(left[k].key, found)
                    share(len(results) / len(jobs))
        return [results[job.key] for job in jobs]
