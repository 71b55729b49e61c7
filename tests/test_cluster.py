"""`explore` on a real Dask cluster of this machine: the same bytes, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import onnxprune
from onnxprune import BadInputError
from onnxprune.jobs import Checkpoint, Job, Jobs, Result, Shared, cluster
from onnxprune.jobs.cluster import Cluster, _same, versions
from onnxprune.jobs.job import key_of

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
    killer = when(lambda: kept.count >= 2, lambda: kill_a_worker(local.scheduler_address))
    jobs = Jobs(place, kept)
    found = jobs(noted, Shared(str(marks)), jobs_of(10, 0.4))
    killer.join()
    assert [r.values["number"] for r in found] == list(range(10)) and jobs.computed == 10
    times = [int(p.name.split("-")[0]) for p in marks.iterdir()]
    assert {*times} == {*range(10)}
    assert len(times) <= 11, (
        "a job whose result was there ran again"
    )  # one at most was done but not told when its worker went
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
