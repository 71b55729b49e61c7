"""Targets of time, on a device that exists nowhere and always takes the same time (`tests/made_up_device.py`).

Seen red: widths between the blocks of the device, a table that is measured again, times of another version of the engine, savings that were
guessed and not measured, a model that is written though it is too slow.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget, TargetNotReachableError, runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.choose import layers, pace
from onnxprune.choose.costs import CostModel
from onnxprune.choose.kept_times import KeptTimes, all_kept, clear
from onnxprune.choose.layers import Choice
from onnxprune.choose.pieces import pieces_of
from onnxprune.choose.small_graph import Cutter
from onnxprune.choose.subject import Subject
from onnxprune.choose.timer import Timer
from onnxprune.cli import main
from onnxprune.cut.rewrite import rewrite
from onnxprune.groups.analysis import Analysis
from onnxprune.model.load import load
from onnxprune.report.markdown import markdown
from tests.made_up_device import Device, Layouts, Refusing, Starting
from tests.zoo import SHARED, load_graph

ROOT = Path(__file__).resolve().parent.parent
DIGITS, DATA = ROOT / "models" / "digits.onnx", ROOT / "models" / "digits_calib.npz"
VIT = ROOT / "models" / "digits_vit.onnx"
ZOO = ROOT / "tests" / "zoo"
QUICK: dict[str, Any] = {"recover": "none", "check": False}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def analysed(model: Any) -> Analysis:
    return analysis_of(load(model), Scope())


# ---------------------------------------------------------------- the target


@pytest.mark.parametrize(
    ("amount", "metric", "value"), [("50%", "speedup", 2.0), ("3.5", "latency", 3.5), (2, "latency", 2.0)]
)
def test_ways_to_write_a_time(amount: Any, metric: str, value: float) -> None:
    budget = Budget("latency", amount)
    assert (budget.metric, budget.amount) == (metric, value)


@pytest.mark.parametrize(
    ("metric", "amount"),
    [("speedup", 0.5), ("speedup", "2x"), ("latency", 0), ("latency", "150%"), ("latency", "0%"), ("latency", "fast")],
)
def test_times_that_are_none(metric: Any, amount: Any) -> None:
    with pytest.raises(BadInputError, match=f"--{metric}"):
        Budget(metric, amount)


def ratio(result: onnxprune.PruneResult, device: Device, model: Any) -> float:
    """How many times as fast the written model is, by the device's own account."""
    analysis = analysed(model)
    before, after = (device.milliseconds(m, analysis.feeds[0]) for m in (analysis.model.proto, result.model))
    return before / after


@pytest.mark.parametrize("asked", [1.3, 2])
@pytest.mark.parametrize("name", ["digits", "digits_vit", "gpt2", "vgg"])
def test_the_finished_model_is_as_fast_as_asked(name: str, asked: float) -> None:
    places = {"digits": DIGITS, "digits_vit": VIT, "vgg": SHARED.parent / "nets" / "vgg.onnx"}
    if not places.get(name, DIGITS).exists():
        pytest.skip("shared/ is not there")
    model = places.get(name) or load_graph(ZOO / "hf__gpt2__dynamo.onnx.z")
    device = Device(8)
    try:
        result = onnxprune.prune(model, Budget("speedup", asked), runner=device, **QUICK)
    except TargetNotReachableError as refusal:
        assert name == "digits_vit", refusal
        assert "the fastest model found is 1." in str(refusal)
        return
    assert asked <= ratio(result, device, model) <= asked * 1.06
    assert result.report.pace.measured == pytest.approx(ratio(result, device, model), rel=1e-3)
    assert result.report.latency_ms.speedup >= asked


def test_milliseconds_and_shares() -> None:
    device = Device(8)
    whole = device.milliseconds(onnx.load(DIGITS), analysed(DIGITS).feeds[0])
    result = onnxprune.prune(DIGITS, Budget("latency", 0.7 * whole), runner=device, **QUICK)
    assert 0.94 * 0.7 * whole <= whole / ratio(result, device, DIGITS) <= 0.7 * whole
    share = onnxprune.prune(DIGITS, Budget("latency", "70%"), runner=device, **QUICK)
    assert share.model == result.model and share.plan.settings["target"] == {"speedup": pytest.approx(1 / 0.7)}


def test_a_model_that_is_fast_enough_stays_whole() -> None:
    result = onnxprune.prune(DIGITS, Budget("latency", 1e6), runner=Device(), **QUICK)
    assert not any(g.removed for g in result.report.groups)


@pytest.mark.parametrize("data", [None, DATA])
def test_widths_are_those_of_the_device(data: Path | None) -> None:
    """Just above a step of its kernels, a width costs what the next step does."""
    device = Device(8)
    how = QUICK if data is None else {"data": data, "check": False, "mix": False}
    result = onnxprune.prune(DIGITS, Budget("speedup", 1.7), runner=device, **how)
    assert any(g.removed for g in result.report.groups)
    assert all((g.units - g.removed) % 8 == 0 for g in result.report.groups)


def test_less_is_lost_than_at_a_share_of_the_macs_that_is_as_fast() -> None:
    device, net = Device(8), SHARED.parent / "nets" / "vgg.onnx"
    if not net.exists():
        pytest.skip("shared/ is not there")
    timed = onnxprune.prune(net, Budget("speedup", 2), runner=device, **QUICK)
    kept = timed.report.cost.macs.after / timed.report.cost.macs.before
    counted = onnxprune.prune(net, Budget("macs", kept), runner=device, round_to=1, **QUICK)
    assert ratio(counted, device, net) < ratio(timed, device, net)


def test_widths_that_cost_their_neighbours_are_left_alone() -> None:
    """No layer shows by itself what a width costs between two of them; the whole model does."""
    result = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=Layouts(0.2), data=DATA, check=False, mix=False)
    assert any(g.removed for g in result.report.groups)
    assert all((g.units - g.removed) % 8 == 0 for g in result.report.groups)
    assert result.report.pace.measured >= 1.5


@pytest.mark.slow
def test_any_widths_win_where_they_cost_nothing() -> None:
    how = {"data": DATA, "check": False, "mix": False}
    free = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=Layouts(0.0), **how)
    blocks = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=Layouts(0.0), round_to=8, **how)
    assert any((g.units - g.removed) % 8 for g in free.report.groups)
    assert free.report.pace.measured >= 1.5 <= blocks.report.pace.measured


# ---------------------------------------------------------------- refusals


def test_a_finished_model_that_is_slower_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last benchmark says, with the final weights, counts."""
    turned = runtime.in_turn

    def slower(opened: Any, *args: Any, **how: Any) -> Any:
        before, after = turned(opened, *args, **how)
        return before, replace(after, rounds=tuple(1.5 * ms for ms in before.rounds))

    monkeypatch.setattr("onnxprune.proof.elsewhere.runtime.in_turn", slower)
    monkeypatch.setattr("onnxprune.choose.pace.runtime", SimpleNamespace(**vars(runtime) | {"in_turn": turned}))
    with pytest.raises(TargetNotReachableError, match=r"was not kept: the finished model is 0\.67 times as fast"):
        onnxprune.prune(DIGITS, Budget("speedup", 1.3), runner=Device(8), output=tmp_path / "o.onnx", **QUICK)
    assert not (tmp_path / "o.onnx").exists()


def test_unreachable_says_how_far_it_gets_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        TargetNotReachableError, match=r"--speedup 50 cannot be reached: the fastest model found is \d+\.\d+ times"
    ) as found:
        onnxprune.prune(DIGITS, Budget("speedup", 50), runner=Device(8), output=tmp_path / "o.onnx", **QUICK)
    assert "Most of its time is left in Conv" in str(found.value) and "made-up device" in str(found.value)
    assert found.value.exit_code == 3 and not (tmp_path / "o.onnx").exists()


def test_a_device_that_no_width_makes_faster() -> None:
    """All groups of the network are narrower than one block of the device."""
    with pytest.raises(TargetNotReachableError, match=r"1\.00 times as fast"):
        onnxprune.prune(DIGITS, Budget("speedup", 1.2), runner=Device(4096), **QUICK)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(BadInputError, match="--cost goes with --max-drop"):
        onnxprune.prune(DIGITS, Budget("macs", 0.5), cost="latency")
    with pytest.raises(BadInputError, match="finetune"):
        onnxprune.prune_during_training(DIGITS, Budget("speedup", 2), data=DATA)


def test_one_target_on_the_command_line(tmp_path: Path) -> None:
    run = CliRunner().invoke(
        main, ["prune", str(DIGITS), "-o", str(tmp_path / "o.onnx"), "--speedup", "2", "--latency", "50%"]
    )
    assert run.exit_code == 2 and "exactly one target" in run.output


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("name", ["digits", "hf__gpt2__dynamo", "tv__shufflenet_v2_x0_5__dynamo"])
def test_pieces_add_up_to_the_model(name: str) -> None:
    """On a device without anything between its nodes, for the original and for a removal.

    But for nodes that compute sizes, which this device does not fold and several pieces have, and for pieces that take next to nothing,
    which are not measured at every size: together up to 4 % of the shuffled network.
    """
    model = DIGITS if name == "digits" else load_graph(ZOO / f"{name}.onnx.z")
    analysis, device = analysed(model), Device(1)
    costs = CostModel(analysis, Timer(device, seconds=0))
    table = costs.times
    half = table.sizes.removed({k: g.removable // 2 for k, g in enumerate(table.sizes.groups)})
    table.exact(half)
    for removed in (np.zeros(analysis.solution.count, bool), half):
        whole = device.milliseconds(rewrite(analysis, removed), analysis.feeds[0])
        assert table.total(removed) == pytest.approx(whole, rel=0.05)


def test_every_node_that_multiplies_is_in_one_piece() -> None:
    for path in (DIGITS, VIT):
        analysis = analysed(path)
        macs = CostModel(analysis).node_macs
        held = [n for p in pieces_of(analysis, macs) for n in p.nodes]
        assert len(held) == len(set(held)) and set(macs) <= set(held)


def test_layers_of_equal_form_are_measured_once() -> None:
    analysis = analysed(VIT)
    cut, none = Cutter(analysis), np.zeros(analysis.solution.count, bool)
    pieces = pieces_of(analysis, CostModel(analysis).node_macs)
    assert len({cut(p, none).form for p in pieces}) < len(pieces)


def test_the_form_tells_attributes_and_sizes_apart() -> None:
    analysis = analysed(DIGITS)
    cut, none = Cutter(analysis), np.zeros(analysis.solution.count, bool)
    forms = [cut(p, none).form for p in pieces_of(analysis, CostModel(analysis).node_macs)]
    assert len(set(forms)) == len(forms)  # all convolutions of this network differ in size or stride
    assert forms == [cut(p, none).form for p in pieces_of(analysis, CostModel(analysis).node_macs)]


def test_what_the_engine_does_not_run_alone_is_left_out_of_the_table() -> None:
    device = Refusing("GlobalAveragePool", "ReduceMean", "Flatten")
    device.block = 8
    result = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=device, **QUICK)
    assert result.report.pace.measured >= 1.5


# ---------------------------------------------------------------- what is kept


def test_nothing_is_measured_twice(cache: Path) -> None:
    first, second = Device(8), Device(8)
    a, b = (
        onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=d, benchmark=False, **QUICK) for d in (first, second)
    )
    assert a.model == b.model and a.report.pace.graphs[0] > 100
    assert b.report.pace.graphs == (0, sum(a.report.pace.graphs)) and second.opened < 30 < first.opened


def test_times_of_another_version_are_not_used(cache: Path) -> None:
    onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=Device(8), **QUICK)
    other = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=Device(8, version="2"), **QUICK)
    assert other.report.pace.graphs[1] == 0
    assert [k.key["version"] for k in all_kept()] in (["1", "2"], ["2", "1"])


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 0}', '{"format": 1, "key": {}, "ms": {"a": -1}}', '{"format": 1, "key": {}, "ms": 3}'],
)
def test_a_file_that_cannot_be_read_is_written_anew(cache: Path, text: str) -> None:
    kept = KeptTimes({"engine": "x"})
    kept.path.parent.mkdir(parents=True)
    kept.path.write_text(text)
    kept = KeptTimes({"engine": "x"})
    assert kept.get("a") is None
    kept.put("b", 2.0)
    kept.save()
    assert KeptTimes({"engine": "x"}).get("b") == 2.0 and json.loads(kept.path.read_text())["ms"] == {"b": 2.0}


def test_two_processes_add_to_one_file(cache: Path) -> None:
    one, other = KeptTimes({"engine": "x"}), KeptTimes({"engine": "x"})
    one.put("a", 1.0)
    other.put("b", 2.0)
    one.save()
    other.save()
    assert KeptTimes({"engine": "x"}).get("a") == 1.0


def test_a_folder_that_cannot_be_written_to_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = KeptTimes({"engine": "x"}, tmp_path / "file")
    kept.put("a", 1.0)
    kept.save()
    assert kept.get("a") == 1.0


def test_costs_lists_exports_and_clears(cache: Path, tmp_path: Path) -> None:
    kept = KeptTimes({"engine": "made-up", "version": "1"})
    kept.put("a", 1.0)
    kept.save()
    run = CliRunner().invoke(main, ["costs", "--export", str(tmp_path / "c.json")])
    assert run.exit_code == 0 and "made-up" in run.output and "1 place in " in run.output
    assert json.loads((tmp_path / "c.json").read_text())["places"][0]["ms"] == {"a": 1.0}
    assert CliRunner().invoke(main, ["costs", "--clear", "--json"]).exit_code == 2
    cleared = CliRunner().invoke(main, ["costs", "--clear"])
    assert cleared.output == "1 file deleted\n" and cleared.exit_code == 0 and not list(all_kept()) and clear() == 0
    assert "0 places in " in CliRunner().invoke(main, ["costs"]).output


# ---------------------------------------------------------------- with other options


def test_plans_replay(tmp_path: Path) -> None:
    made = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=Device(8), plan=tmp_path / "p.json", **QUICK)
    again = onnxprune.prune(DIGITS, apply=tmp_path / "p.json", benchmark=False, check=False)
    assert again.model == made.model and made.plan.settings["target"] == {"speedup": 1.5}
    assert made.plan.settings["pace"]["measured"] == made.report.pace.measured


def test_reports_say_what_each_group_saves() -> None:
    result = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=Device(8), **QUICK)
    groups, times = result.report.pace.groups, result.report.latency_ms
    assert sum(g.expected for g in groups) == pytest.approx(times.before - times.after, rel=0.1)
    assert all(g.measured == pytest.approx(g.expected, rel=0.5, abs=0.02) for g in groups if g.measured is not None)
    assert "ms expected" in markdown(result.report) and "asked" in markdown(result.report)


def test_reports_say_how_long_each_width_takes() -> None:
    device = Device(8)
    report = onnxprune.prune(DIGITS, Budget("speedup", 1.5), runner=device, **QUICK).report
    rows = {g.id: g for g in report.groups}
    assert {c.group for c in report.pace.curves} == {*rows}
    assert [c.points[0].ms for c in report.pace.curves] == sorted(
        (c.points[0].ms for c in report.pace.curves), reverse=True
    )
    for c in report.pace.curves:
        g, removed = rows[c.group], [p.removed for p in c.points]
        assert removed[0] == 0 and removed == sorted({*removed}) and g.removed in removed and len(removed) <= 9
        assert all(n <= g.removable for n in removed)
        for p in c.points:  # the device works in blocks of 8: what is left of the last block costs as much
            same = [q.ms for q in c.points if -(-(g.units - q.removed) // 8) == -(-(g.units - p.removed) // 8)]
            assert p.ms == pytest.approx(sum(same) / len(same), rel=0.05)
        assert c.points[-1].ms < 0.6 * c.points[0].ms


@pytest.mark.slow
def test_layers_go_where_that_is_faster() -> None:
    device = Device(8)
    result = onnxprune.prune(DIGITS, Budget("speedup", 1.6), runner=device, depth="auto", data=DATA, check=False)
    assert ratio(result, device, DIGITS) >= 1.6
    only = onnxprune.prune(DIGITS, Budget("speedup", 1.2), runner=device, depth="only", data=DATA, check=False)
    assert only.plan.bypassed and ratio(only, device, DIGITS) >= 1.2


def test_layers_go_without_being_asked_where_widths_save_too_little() -> None:
    how = {"runner": Starting(), "data": DATA, "samples": 48, "check": False, "mix": False}
    with pytest.raises(TargetNotReachableError, match="--depth auto"):
        onnxprune.prune(DIGITS, Budget("speedup", 1.3), depth="off", **how)
    result = onnxprune.prune(DIGITS, Budget("speedup", 1.3), **how)
    assert result.plan.bypassed and ratio(result, Starting(), DIGITS) >= 1.3
    assert result.report.pace.measured == pytest.approx(ratio(result, Starting(), DIGITS), rel=1e-3)


def test_layers_come_back_as_long_as_that_loses_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table does not know what goes with a node, so that more layers go than have to."""
    taken: list[int] = []

    def too_many(original: Subject, budget: Budget, *rest: Any) -> Choice:
        choice = layers.chosen(original, replace(budget, amount=0.75 * budget.amount), *rest)
        taken.append(len(choice.subject.bypasses))
        return choice

    how: dict[str, Any] = {"runner": Starting(), "data": DATA, "samples": 48, "check": False, "mix": False}
    monkeypatch.setattr(pace, "chosen", too_many)
    result = onnxprune.prune(DIGITS, Budget("speedup", 1.15), **how)
    assert 0 < len(result.plan.bypassed) < max(taken) and ratio(result, Starting(), DIGITS) >= 1.15
    said = [d.reason for d in result.report.depth.declined]
    assert said.count("the model is fast enough with it") == max(taken) - len(result.plan.bypassed)
    monkeypatch.setattr(pace, "without_last", lambda *arguments: None)
    worse = onnxprune.prune(DIGITS, Budget("speedup", 1.15), **how)
    assert worse.report.repair.damage.after > result.report.repair.damage.after


def test_layers_that_lose_more_than_widths_stay() -> None:
    """Where nodes cost nothing, fewer layers are no faster than narrower ones."""
    how = {"runner": Device(1), "data": DATA, "samples": 48, "check": False, "mix": False}
    result, alone = (onnxprune.prune(DIGITS, Budget("speedup", 1.2), depth=d, **how) for d in (None, "off"))
    assert result.plan.settings["depth"] == "auto" and alone.plan.settings["depth"] == "off"
    assert result.report.repair.damage.after <= alone.report.repair.damage.after * 1.001
    assert all(d.reason != "bypassed" for d in result.report.depth.declined)


def test_the_fastest_model_within_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.choose.max_drop.SHARES", (0.9, 0.7, 0.5, 0.2))
    device = Device(8)
    result = onnxprune.prune(DIGITS, Budget("max_drop", 0.1), cost="latency", runner=device, data=DATA, check=False)
    assert ratio(result, device, DIGITS) > 1.05 and result.report.drop.measured <= 0.1
    assert result.report.pace.measured == pytest.approx(ratio(result, device, DIGITS), rel=1e-3)
    assert result.report.drop.bolder is None or result.report.drop.bolder.of == "time"
