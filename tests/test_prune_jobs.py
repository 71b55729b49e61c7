"""`prune`'s jobs: damages of groups and candidates of a limit, the same bytes wherever they run; and times, which nothing runs beside.

Seen red: a candidate beyond the first that fails in the report, a damage of one subject taken for another's, a model timed beside a job, a
job that waits for a lock that its own process holds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget, runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.api import contest, points
from onnxprune.choose import max_drop
from onnxprune.choose.costs import CostModel
from onnxprune.choose.kept_times import KeptTimes
from onnxprune.choose.max_drop import Jury
from onnxprune.choose.risk import Evidence
from onnxprune.choose.small_graph import SmallGraph
from onnxprune.choose.timer import Timer, attempted
from onnxprune.cli import main
from onnxprune.jobs import Result, host
from onnxprune.jobs.local import Here, Processes
from onnxprune.model.load import load
from tests.made_up_device import Device

DIGITS, DATA = "models/digits.onnx", "models/digits_calib.npz"
LIMIT = Budget("max_drop", 0.1)
QUICK: dict[str, Any] = {"data": DATA, "benchmark": False, "check": False}


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, a lock that no other test has, and no times of before."""
    monkeypatch.setattr(max_drop, "SHARES", (0.8, 0.6, 0.4, 0.3, 0.2, 0.1))
    monkeypatch.setattr(host, "lock_path", lambda: tmp_path / "lock")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are spread, however short they are."""
    monkeypatch.setattr("onnxprune.jobs.run.Processes", lambda count: Processes(count, start=-1.0))


def told(result: onnxprune.PruneResult) -> tuple[bytes, str, dict[str, Any]]:
    """Model, plan and report, but for how long it took."""
    report = result.report.to_dict()
    report.pop("seconds", None)
    return result.model.SerializeToString(deterministic=True), result.plan.to_json(), report


class Ran:
    """Jobs that were computed, of both kinds; stops before one of its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stops: int | None = None) -> None:
        self.kinds: list[str] = []
        self.stops = stops
        for module, name in ((points, "damages_job"), (contest, "candidate_job")):
            monkeypatch.setattr(module, name, self._noted(name, getattr(module, name)))

    def _noted(self, name: str, work: Callable[[Any, Any], Result]) -> Callable[[Any, Any], Result]:
        def run(shared: Any, asked: Any) -> Result:
            if len(self.kinds) == self.stops:
                raise KeyboardInterrupt
            self.kinds.append(name)
            return work(shared, asked)

        return run


# ---------------------------------------------------------------- a limit on the loss


def test_the_same_bytes_in_one_process_and_in_several(processes: None) -> None:
    one, two = (onnxprune.prune(DIGITS, LIMIT, **QUICK, **more) for more in ({}, {"jobs": 2}))
    assert told(one) == told(two)
    outcomes = [t.outcome for t in one.report.candidates]
    assert outcomes[-2:] == ["chosen", "failed"], "the last wave goes beyond the first that fails"


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["auto", "only"])
def test_the_same_bytes_with_layers(depth: str, processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are told which layers are gone, and make of the original what was decided on."""
    monkeypatch.setattr(max_drop, "LAYERS", (0.9, 0.8))
    limit = Budget("max_drop", 2.0)
    one, two = (onnxprune.prune(DIGITS, limit, depth=depth, **QUICK, **more) for more in ({}, {"jobs": 2}))
    assert told(one) == told(two) and (one.plan.bypassed or depth == "auto")
    chosen = next(t for t in one.report.candidates if t.outcome == "chosen")
    assert one.report.drop is not None and chosen.loss == one.report.drop.measured


@pytest.mark.slow
def test_the_fastest_model_within_a_loss_is_the_same(processes: None, tmp_path: Path) -> None:
    """Each decision is timed: none that one process alone would not make."""
    found = []
    for jobs in (1, 2):
        os.environ["ONNXPRUNE_CACHE"] = str(tmp_path / f"cache{jobs}")  # the fixture puts it back
        result = onnxprune.prune(DIGITS, LIMIT, cost="latency", runner=Device(8), jobs=jobs, **QUICK)
        model, _, report = told(result)
        found.append((model, report["candidates"], result.report.pace.rounds, result.report.pace.graphs))
    assert found[0] == found[1]


def test_what_was_stopped_goes_on_and_nothing_is_computed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Ran(monkeypatch)
    wanted = onnxprune.prune(DIGITS, LIMIT, checkpoint=tmp_path / "first", **QUICK)
    count = len(whole.kinds)
    assert {*whole.kinds} == {"damages_job", "candidate_job"} and len(list((tmp_path / "first").iterdir())) == count
    whole.stops = whole.kinds.count("damages_job") + 2
    whole.kinds.clear()
    with pytest.raises(KeyboardInterrupt):
        onnxprune.prune(DIGITS, LIMIT, checkpoint=tmp_path / "kept", **QUICK)
    done, whole.stops = len(whole.kinds), None
    whole.kinds.clear()
    found = onnxprune.prune(DIGITS, LIMIT, checkpoint=tmp_path / "kept", **QUICK)
    assert 0 < len(whole.kinds) == count - done and "damages_job" not in whole.kinds
    assert told(found) == told(wanted)
    whole.kinds.clear()
    assert (
        told(onnxprune.prune(DIGITS, LIMIT, checkpoint=tmp_path / "kept", **QUICK)) == told(wanted) and not whole.kinds
    )


@pytest.mark.slow
def test_another_limit_sets_other_samples_aside_and_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = QUICK | {"checkpoint": tmp_path / "kept", "metric": "top1"}
    onnxprune.prune(DIGITS, Budget("max_drop", 0.2), **own)
    ran = Ran(monkeypatch)
    onnxprune.prune(DIGITS, Budget("max_drop", 0.1), **own)
    assert {*ran.kinds} == {"damages_job", "candidate_job"}
    ran.kinds.clear()
    onnxprune.prune(DIGITS, Budget("macs", 0.5), **QUICK | {"checkpoint": tmp_path / "kept"})
    assert {*ran.kinds} == {"damages_job"}
    ran.kinds.clear()
    onnxprune.prune(DIGITS, Budget("params", 0.5), **QUICK | {"checkpoint": tmp_path / "kept"})
    assert not ran.kinds, "damages do not depend on the target"


def test_layers_that_are_gone_have_damages_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[Any, str]] = []
    made = points.Job

    def noted(key: str, argument: Any, name: str) -> Any:
        keys.append((name, key))
        return made(key, argument, name)

    monkeypatch.setattr(points, "Job", noted)
    onnxprune.prune(DIGITS, Budget("macs", 0.7), depth="auto", **QUICK)
    first = [key for name, key in keys if name == "damages of group 0"]
    assert len({*first}) > 1


class Waves:
    """A jury that notes what it is asked, and fails at some."""

    def __init__(self, losses: Sequence[float | None], width: int) -> None:
        self.losses, self.asked = losses, []
        self.jury = Jury(self.run, width)

    def run(self, choices: Sequence[Any]) -> list[Evidence]:
        self.asked.append(list(choices))
        found = [self.losses[c] for c in choices]
        if None in found:
            raise BadInputError("This one cannot be judged.")
        return [Evidence(np.zeros(20), None, float(x or 0), 20) for x in found]

    def judged(self) -> Iterator[float]:
        listed: Any = ((0.1 * k, k) for k in range(len(self.losses)))
        return (found.measured for _, _, found in max_drop._judged(listed, self.jury, self.jury.width))


def test_waves_are_as_wide_as_the_place_and_in_order() -> None:
    waves = Waves([0.1, 0.2, 0.3, 0.4, 0.5], 2)
    found = waves.judged()
    assert next(found) == 0.1 and waves.asked == [[0, 1]]
    assert list(found) == [0.2, 0.3, 0.4, 0.5] and waves.asked == [[0, 1], [2, 3], [4]]


def test_an_error_beyond_the_first_that_fails_is_none() -> None:
    waves = Waves([0.1, 0.2, None], 3)
    found = waves.judged()
    assert [next(found), next(found)] == [0.1, 0.2]
    with pytest.raises(BadInputError, match="cannot be judged"):
        next(found)


# ---------------------------------------------------------------- what does not go together


def test_nothing_to_spread() -> None:
    plan = onnxprune.prune(DIGITS, Budget("ratio", 0.5), benchmark=False, jobs=2).plan
    with pytest.raises(BadInputError, match="--jobs does not go with --apply: the plan has decided"):
        onnxprune.prune(DIGITS, apply=plan, jobs=2)
    with pytest.raises(BadInputError, match="--jobs counts processes of this machine"):
        onnxprune.prune(DIGITS, Budget("macs", 0.5), jobs=2, cluster="tcp://127.0.0.1:1")
    base = ["prune", DIGITS, "-o", "none.onnx", "--macs", "0.5", "--data", DATA, "--during-training"]
    done = CliRunner().invoke(main, [*base, "--jobs", "2"])
    assert done.exit_code == 2 and "trains in this process; leave out --jobs" in done.output


# ---------------------------------------------------------------- tables of times


def timetable(device: Device, kept: KeptTimes | None = None, **how: Any) -> tuple[Timer, Any]:
    timer = Timer(device, kept, **how)
    return timer, CostModel(analysis_of(load(DIGITS), Scope()), timer)


class Elsewhere:
    """Other machines: measure every graph but each fifth one, which they lose."""

    def __init__(self, device: Device) -> None:
        self.device, self.asked, self.portions = device, [], []

    def __call__(self, graphs: Sequence[SmallGraph]) -> dict[str, float | None]:
        self.portions.append(len(graphs))
        self.asked += [g.form for g in graphs]
        return {g.form: self.device.milliseconds(g.model.proto, g.feeds) for k, g in enumerate(graphs) if k % 5}


def test_a_table_is_the_same_wherever_it_is_measured_and_nothing_is_measured_twice() -> None:
    here, there, client = Device(8), Device(8), Device(8)
    alone, one = timetable(here)
    other = Elsewhere(there)
    spread, two = timetable(client, KeptTimes({"of": "another place"}), elsewhere=other, at_once=8)
    nothing = np.zeros(one.analysis.solution.count, bool)
    half = one.times.sizes.removed({k: g.removable // 2 for k, g in enumerate(one.times.sizes.groups)})
    assert one.times.exact(half) > 0 and two.times.exact(half) > 0
    assert [one.times.total(r) for r in (nothing, half)] == [two.times.total(r) for r in (nothing, half)]
    assert len(other.asked) == len({*other.asked}) == spread.measured == alone.measured == here.opened
    lost = sum((n + 4) // 5 for n in other.portions)
    assert client.opened == lost and max(other.portions) <= 9  # and the graph that computes nothing
    again, three = timetable(Device(8), KeptTimes({"of": "another place"}), elsewhere=other, at_once=8)
    before = len(other.asked)
    assert three.times.total(nothing) == one.times.total(nothing) and len(other.asked) == before
    assert again.measured == again.runner.opened == 0 < again.found  # type: ignore[attr-defined]


def test_what_no_machine_runs_is_asked_for_once() -> None:
    graph = SmallGraph(load(DIGITS), {}, "odd")
    asked = []

    def elsewhere(graphs: Sequence[SmallGraph]) -> dict[str, float | None]:
        asked.extend(g.form for g in graphs)
        return {g.form: None if g.form == "odd" else 1.0 for g in graphs}

    timer = Timer(Device(), elsewhere=elsewhere)
    assert timer([graph, graph]) == [None, None] and timer([graph]) == [None]
    assert asked == ["nothing", "odd"]


# ---------------------------------------------------------------- nothing beside what is timed


def beside(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process with a job that computes for so long, once it has begun."""
    code = (
        "import time; from pathlib import Path; from onnxprune.jobs import host\n"
        f"host.lock_path = lambda: Path({str(folder / 'lock')!r})\n"
        f"with host.shared():\n print('in', flush=True); time.sleep({seconds})\n"
        f" Path({str(folder / 'done')!r}).write_text('')\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    return other


class Watching(Device):
    """A device that says whether a job of another process was done when it timed first."""

    def __init__(self, done: Path) -> None:
        super().__init__(8)
        self.done, self.after = done, []

    def open(self, model: Any, feeds: Any, what: str) -> Any:
        opened = super().open(model, feeds, what)
        time_of = opened.time

        def noted(runs: int) -> Sequence[float]:
            self.after.append(self.done.exists())
            return time_of(runs)

        opened.time = noted  # type: ignore[method-assign]
        return opened


@pytest.mark.parametrize("what", ["a piece", "models in turn", "bench"])
def test_what_is_timed_waits_for_jobs(what: str, tmp_path: Path) -> None:
    device, analysis = Watching(tmp_path / "done"), analysis_of(load(DIGITS), Scope())
    other = beside(tmp_path, 0.7)
    if what == "a piece":
        attempted(device, SmallGraph(analysis.model, analysis.feeds[0], "it"))
    elif what == "models in turn":
        runtime.latency(device, [analysis.model], analysis.feeds[0], repeats=3)
    else:
        onnxprune.bench([DIGITS], runner=device, runs=3)
    other.wait()
    assert device.after and all(device.after)


def test_every_time_of_a_run_is_taken_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, whole models and the benchmark at the end; and no job computes then."""
    held: list[str] = []

    class Held(Device):
        def open(self, model: Any, feeds: Any, what: str) -> Any:
            opened = super().open(model, feeds, what)
            time_of = opened.time
            opened.time = lambda runs: held.append(f"time {host._held.how}") or time_of(runs)  # type: ignore[method-assign]
            return opened

    work = contest.candidate_job
    monkeypatch.setattr(contest, "candidate_job", lambda *given: held.append(f"job {host._held.how}") or work(*given))
    onnxprune.prune(DIGITS, LIMIT, cost="latency", runner=Held(8), **QUICK | {"benchmark": True})
    checked = [h for h in held if h != "time None"]  # the original is tried once before anything is measured
    assert {*checked} == {"time LOCK_EX", "job LOCK_SH"} and len(held) - len(checked) <= 1
    assert getattr(host._held, "how", None) is None


def test_a_lock_within_itself_and_one_that_would_never_come() -> None:
    with host.alone(), host.alone(), host.shared():
        pass
    with host.shared(), host.shared(), pytest.raises(RuntimeError, match="wait for itself"), host.alone():
        pass
    with host.alone():
        pass


def test_who_waits_to_be_alone_comes_before_later_jobs(tmp_path: Path) -> None:
    """Else jobs that overlap one another would keep it waiting for ever."""
    order: list[str] = []
    ready = threading.Event()

    def first() -> None:
        with host.shared():
            ready.set()
            time.sleep(0.6)

    def measures() -> None:
        with host.alone():
            order.append("alone")

    def later() -> None:
        with host.shared():
            order.append("shared")

    threads = [threading.Thread(target=t) for t in (first, measures, later)]
    for thread in threads:
        thread.start()
        ready.wait()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert order == ["alone", "shared"]


def test_without_a_place_for_the_lock_things_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "lock_path", lambda: tmp_path / "missing" / "lock")
    with host.alone():
        pass


# ---------------------------------------------------------------- places


def test_processes_know_how_long_jobs_of_a_kind_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one of all runs here to find out; of a later wave, all go to the processes at once."""
    from tests.test_jobs import listed, power

    place = Processes(2, start=-1.0)
    spread: list[int] = []
    real = place._spread
    monkeypatch.setattr(place, "_spread", lambda w, s, jobs: spread.append(len(jobs)) or real(w, s, jobs))
    shared = contest.shared_of(3, onnxprune.Options())
    assert [k for k, _ in sorted(place.run(power, shared, listed(3)))] == [0, 1, 2]
    sent = place._path(shared)
    assert [k for k, _ in sorted(place.run(power, shared, listed(2)))] == [0, 1]
    assert spread == [2, 2] and place.width == 2 and place._path(shared) == sent
    place.close()
    assert not sent.exists()


def test_results_without_a_model_are_remembered() -> None:
    from onnxprune.jobs import Jobs, Shared
    from tests.test_jobs import count_threads, listed, power

    jobs = Jobs(Here())
    for _ in range(2):
        jobs(count_threads, Shared(3), [replace(j, key=f"t{j.key}") for j in listed(2)])
        jobs(power, Shared(3), listed(2))
    assert jobs.computed == 2 + 2 * 2
