"""What a command does its work with: where its jobs run, and what measures time, here or on machines of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnxprune import runtime
from onnxprune.api.points import shared_of
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.small_graph import SmallGraph
from onnxprune.choose.timer import Timer, attempted
from onnxprune.clock import Clock
from onnxprune.jobs import Checkpoint, Job, Jobs, Result, place_of
from onnxprune.jobs.cluster import Cluster
from onnxprune.jobs.job import key_of
from onnxprune.proof.elsewhere import Stopwatch

EACH = 4
"""Small graphs that a host gets at once: more would be measured after the time for tables is up."""


@dataclass(frozen=True)
class Means:
    """place: where models are timed."""

    clock: Clock
    jobs: Jobs
    place: Place
    watch: Stopwatch

    @property
    def leaves_results(self) -> bool:
        """May results be found by another command, so that they need a name of all that they depend on? To hash the data takes a while."""
        return self.jobs.checkpoint is not None or isinstance(self.jobs.place, Cluster)

    def timer(self, settings: Options) -> Timer:
        """For tables of times. On a cluster, hosts measure on which a time depends on the same as here."""
        own: dict[str, Any] = {"batch": self.watch.batch, "warmup": self.watch.warmup}
        cluster, spec = self.jobs.place, self.place.spec
        if isinstance(cluster, Cluster) and spec is not None:
            asked = Asked(spec, self.place.threads)
            hosts = cluster.alike(asked.key)
            if hosts:
                there = partial(_measured, cluster, hosts, asked, settings)
                return Timer(self.watch.runner, elsewhere=there, at_once=EACH * len(hosts), **own)
        return Timer(self.watch.runner, **own)


@contextmanager
def means(where: JobOptions, place: Place, clock: Clock, *, count: int | None) -> Iterator[Means]:
    """count: of processes, where nothing is said; None: one for each core. Raises `BadInputError`."""
    checkpoint = None if where.checkpoint is None else Checkpoint(where.checkpoint)
    watch = Stopwatch(place.made(), place.batch, place.warmup)
    processes = count if where.jobs is None and where.cluster is None else where.jobs
    with closing(place_of(processes, where.cluster)) as at:
        yield Means(clock, Jobs(at, checkpoint), place, watch)


@dataclass(frozen=True)
class Asked:
    """A runner by what another process needs to make it (`Place.spec`)."""

    spec: dict[str, Any]
    threads: int

    def made(self) -> runtime.Runner:
        return runtime.runner_of(**self.spec, threads=self.threads)

    def key(self) -> dict[str, str]:
        """All that a time depends on, in this process."""
        return dict(self.made().key)


def _measured(
    cluster: Cluster, hosts: Sequence[str], asked: Asked, settings: Options, graphs: Sequence[SmallGraph]
) -> Mapping[str, float | None]:
    key = asked.key()
    listed = [Job(key_of("time", key, g.form), g, "time of a piece") for g in graphs]
    found = cluster.measure(time_job, shared_of(asked, settings), listed, hosts)
    return {graphs[k].form: result.values["ms"] for k, result in found}


def time_job(asked: Asked, graph: SmallGraph) -> Result:
    """Milliseconds of a small graph; None where the engine does not run it."""
    return Result({"ms": attempted(asked.made(), graph)})
