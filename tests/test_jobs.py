"""Jobs: the same results wherever they run, none twice, and nothing that times beside others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from onnxprune import BadInputError
from onnxprune.errors import WorkerLostError
from onnxprune.jobs import Checkpoint, Job, Jobs, Result, Shared, host, place_of
from onnxprune.jobs.job import key_of
from onnxprune.jobs.local import Here, Processes
from onnxprune.jobs.opened import opened

MARK = "ONNXPRUNE_TEST_MARK"


def power(base: int, exponent: int) -> Result:
    """Says who it was, too."""
    return Result({"is": base**exponent, "pid": os.getpid()}, bytes([exponent]))


def threads_of_sums() -> list[int]:
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    return sorted({int(x["num_threads"]) for x in threadpool_info() if x["user_api"] == "blas"})


def count_threads(base: int, exponent: int) -> Result:
    return Result({"threads": threads_of_sums()})


def fatal(base: int, exponent: int) -> Result:
    if exponent:
        os._exit(1)
    return Result({})


def refuse(base: int, exponent: int) -> Result:
    raise BadInputError("Not this one.")


def mark(name: str) -> None:
    os.environ[MARK] = name


def listed(count: int) -> list[Job]:
    return [Job(key_of("power", 3, k), k, f"3^{k}") for k in range(count)]


def test_processes_give_what_one_gives_in_the_order_of_the_jobs() -> None:
    many = Jobs(Processes(2, start=-1.0))(power, Shared(3), listed(6))
    assert [r.values["is"] for r in many] == [1, 3, 9, 27, 81, 243]
    assert [r.model for r in many] == [bytes([k]) for k in range(6)]
    assert any(r.values["pid"] != os.getpid() for r in many)


def test_short_jobs_stay_in_this_process() -> None:
    found = Jobs(Processes(2))(power, Shared(3), listed(6))
    assert {r.values["pid"] for r in found} == {os.getpid()}


def test_a_job_that_is_asked_for_twice_runs_once() -> None:
    jobs = Jobs(Here())
    assert [r.values["is"] for r in jobs(power, Shared(3), [*listed(2), *listed(2)])] == [1, 3, 1, 3]
    assert jobs.computed == 2


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    first, second = Jobs(Here(), Checkpoint(tmp_path)), Jobs(Here(), Checkpoint(tmp_path))
    first(power, Shared(3), listed(3))
    found = second(power, Shared(3), listed(5))
    assert (first.computed, second.computed, second.found) == (3, 2, 3)
    assert [(r.values["is"], r.model) for r in found] == [(3**k, bytes([k])) for k in range(5)]
    assert Checkpoint(tmp_path).count == 5 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"x"), lambda p: p.unlink()])
@pytest.mark.parametrize("suffix", [".json", ".onnx"])
def test_a_damaged_result_is_computed_again(damage: object, suffix: str, tmp_path: Path) -> None:
    Jobs(Here(), Checkpoint(tmp_path))(power, Shared(3), listed(2))
    damage(tmp_path / f"{listed(2)[1].key}{suffix}")  # type: ignore[operator]
    again = Jobs(Here(), Checkpoint(tmp_path))
    assert [r.values["is"] for r in again(power, Shared(3), listed(2))] == [1, 3]
    assert (again.computed, again.found) == (1, 1)


def test_results_of_another_name_are_not_taken(tmp_path: Path) -> None:
    """A file that was renamed says whose it is."""
    Jobs(Here(), Checkpoint(tmp_path))(power, Shared(3), listed(1))
    one, other = listed(2)
    (tmp_path / f"{one.key}.json").rename(tmp_path / f"{other.key}.json")
    (tmp_path / f"{one.key}.onnx").rename(tmp_path / f"{other.key}.onnx")
    assert Checkpoint(tmp_path).get(other.key) is None


def test_what_is_done_before_an_error_is_kept(tmp_path: Path) -> None:
    Jobs(Here(), Checkpoint(tmp_path))(power, Shared(3), listed(2))
    jobs = Jobs(Here(), Checkpoint(tmp_path))
    with pytest.raises(BadInputError, match="Not this one"):
        jobs(refuse, Shared(3), listed(3))
    assert Checkpoint(tmp_path).count == 2


def test_expected_jobs_run_in_processes_that_were_started_before() -> None:
    place = Processes(2)
    place.expect(power, 4)
    found = dict(place.run(power, Shared(3), listed(4)))
    place.close()
    assert [found[k].values["is"] for k in range(4)] == [1, 3, 9, 27]
    assert os.getpid() not in {r.values["pid"] for r in found.values()}


def test_an_error_of_another_process_comes_as_it_is() -> None:
    with pytest.raises(BadInputError, match="Not this one"):
        list(Processes(2)._spread(refuse, Shared(3), listed(3)))


def test_a_process_that_ends_is_one_clear_error() -> None:
    with pytest.raises(WorkerLostError, match="--jobs"):
        list(Processes(2)._spread(fatal, Shared(3), listed(3)))


def test_what_cannot_travel_is_one_clear_error() -> None:
    with pytest.raises(BadInputError, match="--jobs 1"):
        Shared(threading.Lock()).packed  # noqa: B018


def test_a_shared_value_is_opened_once_after_its_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "before")
    shared, reads = Shared({"a": 1}, (mark, ("after",))), []

    def read() -> bytes:
        reads.append(1)
        return shared.packed

    assert opened(shared.digest, read) is opened(shared.digest, read)
    assert len(reads) == 1 and os.environ[MARK] == "after"


@pytest.mark.parametrize("run", [Here().run, Processes(2)._spread])
def test_sums_take_one_thread_wherever_a_job_runs(run: Any) -> None:
    before = threads_of_sums()
    assert before and {tuple(r.values["threads"]) for _, r in run(count_threads, Shared(0), listed(3))} == {(1,)}
    assert threads_of_sums() == before


def test_what_is_timed_waits_for_what_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "lock_path", lambda: tmp_path / "lock")
    code = (
        "import sys, time; from pathlib import Path; from onnxprune.jobs import host\n"
        f"host.lock_path = lambda: Path({str(tmp_path / 'lock')!r})\n"
        "with host.shared():\n print('in', flush=True); time.sleep(1)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    begin = time.monotonic()
    with host.shared():
        shared = time.monotonic() - begin
    with host.alone():
        assert time.monotonic() - begin > 0.5 > shared
    other.wait()


def test_jobs_and_cluster_exclude_each_other() -> None:
    with pytest.raises(BadInputError, match="--jobs"):
        place_of(2, "tcp://127.0.0.1:1")


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BadInputError, match=r"onnxprune\[cluster\]"):
        place_of(None, "tcp://127.0.0.1:1")


def test_a_checkpoint_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/within"):
        with pytest.raises(BadInputError, match="--checkpoint"):
            Checkpoint(tmp_path / place)
    Checkpoint(tmp_path / "new")
    assert not (tmp_path / "new").exists(), "made before there is a result"
