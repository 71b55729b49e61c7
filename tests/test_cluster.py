"""`explore` and `prune` on a real Dask cluster of this machine: the same bytes, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import onnxprune
from onnxprune import BadInputError
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.api.means import EACH, Means
from onnxprune.choose.costs import CostModel
from onnxprune.choose.place import Place as TimingPlace
from onnxprune.clock import Clock, silent
from onnxprune.jobs import Checkpoint, Job, Jobs, Result, Shared, cluster
from onnxprune.jobs.cluster import Cluster, _same, versions
from onnxprune.jobs.job import key_of
from onnxprune.model.load import load
from onnxprune.proof.elsewhere import Stopwatch

DIGITS, DATA = "models/digits.onnx", "models/digits_calib.npz"
WAIT = 120.0


def test_a_cluster_that_is_not_there() -> None:
    with pytest.raises(BadInputError, match=r"not reached within 0.5 s .*dask scheduler"):
        Cluster("tcp://127.0.0.1:1", patience=0.5)


@pytest.mark.parametrize("name", ["onnxprune", "onnxruntime"])
def test_a_worker_with_another_version(name: str) -> None:
    own = versions()
    _same(own, own, "tcp://w")
    with pytest.raises(BadInputError, match=f"tcp://w has {name} 0.0.1, and this machine {own[name]}"):
        _same(own | {name: "0.0.1"}, own, "tcp://w")
    with pytest.raises(BadInputError, match="not installed"):
        _same({k: v for k, v in own.items() if k != name}, own, "tcp://w")


def noted(folder: str, argument: tuple[int, float]) -> Result:
    """Leaves a file for each time that it runs to its end."""
    number, seconds = argument
    time.sleep(seconds)
    (Path(folder) / f"{number}-{os.getpid()}-{time.monotonic_ns()}").write_text("")
    return Result({"number": number})


def jobs_of(count: int, seconds: float) -> list[Job]:
    return [Job(key_of("noted", k, os.getpid(), seconds), (k, seconds), str(k)) for k in range(count)]


@pytest.fixture
def place(local: Any) -> Iterator[Cluster]:
    with closing(Cluster(local.scheduler_address)) as made:
        yield made


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """A scheduler and two worker processes, which nannies start anew when they are killed."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as made:
        made.wait_for_workers(2)
        yield made


def kill_a_worker(address: str) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        busy = [w for w, tasks in client.processing().items() if tasks]
        pids = client.run(os.getpid)
    os.kill(pids[(busy or list(pids))[0]], signal.SIGKILL)


def when(condition: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Does something as soon as something is so."""

    def watch() -> None:
        end = time.monotonic() + WAIT
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
def test_jobs_of_a_killed_worker_run_again_and_no_others(local: Any, place: Cluster, tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "kept")
    marks = tmp_path / "marks"
    marks.mkdir()
    listed, there = jobs_of(10, 0.4), list[int]()

    def kill() -> None:
        there.extend(k for k, job in enumerate(listed) if kept.get(job.key) is not None)
        kill_a_worker(local.scheduler_address)

    killer = when(lambda: kept.count >= 4, kill)
    jobs = Jobs(place, kept)
    found = jobs(noted, Shared(str(marks)), listed)
    killer.join()
    assert [r.values["number"] for r in found] == list(range(10)) and jobs.computed == 10
    times = [int(p.name.split("-")[0]) for p in marks.iterdir()]
    assert {*times} == {*range(10)}
    assert len(there) >= 4 and [times.count(k) for k in there] == [1] * len(there), (
        "a job whose result was there ran again"
    )
    again = Jobs(place, kept)
    assert again(noted, Shared(str(marks)), jobs_of(10, 0.4)) == found
    assert (again.computed, again.found) == (0, 10) and len(list(marks.iterdir())) == len(times)


@pytest.mark.slow
def test_all_workers_lost_with_what_they_shared(local: Any, place: Cluster, tmp_path: Path) -> None:
    def both() -> None:
        from distributed import Client

        with Client(local.scheduler_address, set_as_default=False) as client:
            pids = client.run(os.getpid)
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)

    killer = when(lambda: len(list(tmp_path.iterdir())) >= 2, both)
    found = dict(place.run(noted, Shared(str(tmp_path)), jobs_of(8, 0.5)))
    killer.join()
    assert sorted(found) == list(range(8))


@pytest.mark.slow
def test_the_same_plans_with_a_worker_killed_and_the_client_stopped(local: Any, tmp_path: Path) -> None:
    """A first client is killed on the way; a second one goes on, and loses a worker."""
    at = "macs=0.8,0.6,0.4,0.3"
    wanted = onnxprune.explore(DIGITS, data=DATA, at=onnxprune_targets(at), jobs=1).report
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "onnxprune", "explore", DIGITS, "--data", DATA, "--at", at]
    first = subprocess.Popen([*command, "--cluster", local.scheduler_address, "--checkpoint", str(kept)])
    end = time.monotonic() + WAIT
    while not list(kept.glob("*.onnx")) and time.monotonic() < end and first.poll() is None:
        time.sleep(0.02)
    first.kill()
    first.wait()
    had = Checkpoint(kept).count
    assert 0 < had < wanted.computed
    killer = when(lambda: Checkpoint(kept).count > had, lambda: kill_a_worker(local.scheduler_address))
    found = onnxprune.explore(
        DIGITS, data=DATA, at=onnxprune_targets(at), cluster=local.scheduler_address, checkpoint=kept
    ).report
    killer.join()
    assert [(p.plan_sha256, p.model_sha256) for p in found.points] == [
        (p.plan_sha256, p.model_sha256) for p in wanted.points
    ]
    assert found.reused == had and found.computed == wanted.computed - had
    assert Checkpoint(kept).count == wanted.computed


@pytest.mark.slow
def test_prune_gives_the_same_bytes_on_a_cluster(local: Any, tmp_path: Path) -> None:
    limit, given = onnxprune.Budget("max_drop", 0.1), {"data": DATA, "benchmark": False}
    one = onnxprune.prune(DIGITS, limit, **given)
    found = onnxprune.prune(DIGITS, limit, cluster=local.scheduler_address, checkpoint=tmp_path, **given)
    assert found.model == one.model and found.plan.to_json() == one.plan.to_json()
    assert found.report.candidates == one.report.candidates and found.report.drop == one.report.drop
    assert Checkpoint(tmp_path).count > len(one.report.candidates)


def kind(value: str = "") -> str:
    return f"a machine with {os.cpu_count()} cores {value and os.getpid()}"


@pytest.mark.slow
def test_tables_are_measured_by_hosts_of_the_same_kind(
    place: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One host with two workers: one graph at a time, and none here."""
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    assert len(place.alike(kind)) == 1 and place.alike(partial(kind, "of its own")) == [] and place.width == 2
    timing = TimingPlace()
    by = Means(Clock(silent), Jobs(place), timing, Stopwatch(timing.made()))
    settings = onnxprune.Options()
    timer = by.timer(settings)
    assert timer.at_once == EACH

    def never(*given: Any) -> None:
        raise AssertionError("measured here")

    monkeypatch.setattr("onnxprune.choose.timer.timed", never)
    analysis = analysis_of(load(DIGITS), Scope())
    costs = CostModel(analysis, timer)
    timer.seconds = 0.0
    assert costs.times.total(None) > 0 and timer.measured > 5
    again = by.timer(settings)
    again.seconds = 0.0
    assert CostModel(analysis, again).times.total(None) == costs.times.total(None) and again.measured == 0
    own = TimingPlace(runner="echo {model}")
    assert Means(Clock(silent), Jobs(place), own, Stopwatch(own.made())).timer(settings).elsewhere is None


def spanned(folder: str, number: int) -> Result:
    begin = time.monotonic()
    time.sleep(0.2)
    return Result({"from": begin, "to": time.monotonic()})


@pytest.mark.slow
def test_jobs_that_measure_are_alone_on_their_host(place: Cluster) -> None:
    listed = [Job(key_of("spanned", k, os.getpid()), k, str(k)) for k in range(4)]
    found = sorted(
        (r.values["from"], r.values["to"]) for _, r in place.measure(spanned, Shared(""), listed, place.alike(kind))
    )
    assert len(found) == 4 and all(a[1] <= b[0] for a, b in pairwise(found))


@pytest.mark.slow
def test_times_that_are_lost_with_their_host_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "LOOK", 0.5)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as own:
        own.wait_for_workers(1)
        with closing(Cluster(own.scheduler_address)) as there:
            hosts = there.alike(kind)
            gone = when(lambda: bool(list(tmp_path.iterdir())), lambda: own.scale(0))
            found = list(there.measure(noted, Shared(str(tmp_path)), jobs_of(20, 0.5), hosts))
            gone.join()
    assert len(found) < 20


def onnxprune_targets(text: str) -> Any:
    from onnxprune.choose.explore_options import parse_targets

    return parse_targets([text])


@pytest.mark.slow
def test_a_real_worker_with_another_version_is_refused(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "__version__", "9.9.9")
    with pytest.raises(BadInputError, match=r"has onnxprune .*, and this machine 9\.9\.9"):
        Cluster(local.scheduler_address)


@pytest.mark.slow
def test_a_cluster_without_workers() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, processes=True, dashboard_address=":0") as empty,
        pytest.raises(BadInputError, match="has no workers"),
    ):
        Cluster(empty.scheduler_address)
