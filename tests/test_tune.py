"""`prune --tune`: the result learns from the original in the same command; what it changed is listed, and the plan still proves the rest.

Seen red: a constant that two nodes read and of which one is listed, a branch's own weight, sources that are torn apart, a teacher that is
not the original, an audit of the untuned model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget, Plan, VerificationError, prune, verify
from onnxprune.analyse.feeds import samples_of
from onnxprune.analyse.sources import Sources
from onnxprune.api import carry, finetuning, training_data
from onnxprune.api.finetune import FinetuneResult
from onnxprune.choose.finetune_options import finetune_options_of
from onnxprune.cli import main
from onnxprune.model.branches import showing
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.report import schema
from onnxprune.runtime import Session, graph_inputs
from onnxprune.training import loop
from onnxprune.training.network import Network
from onnxprune.training.objective import Objective, Target, candidates, features
from onnxprune.training.samples import calibrated
from tests.oracle import net
from tests.test_blocks import ENDS, apart, setting
from tests.test_schemas import faults

ROOT = Path(__file__).resolve().parent.parent
DIGITS, CALIBRATION = ROOT / "models" / "digits.onnx", ROOT / "models" / "digits_calib.npz"
NOWHERE = "nowhere.onnx"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def always_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every judgement is lower than the one before, so that what was trained is written."""
    falling = iter(range(1000, 0, -1))
    monkeypatch.setattr(Objective, "held_out", lambda *arguments: float(next(falling)))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pruned and tuned model, its plan and reports."""
    folder = tmp_path_factory.mktemp("tune")
    call = [
        "prune",
        str(DIGITS),
        "-o",
        str(folder / "s.onnx"),
        "--macs",
        "0.15",
        "--data",
        str(CALIBRATION),
        "--tune-steps",
        "30",
    ]
    call += ["--samples", "64", "--plan", str(folder / "p.json"), "--report"]
    found = CliRunner().invoke(main, [*call, str(folder / "r.json")])
    assert found.exit_code == 0, found.output
    (folder / "told.txt").write_text(found.output)
    return folder


def test_the_report_says_what_was_gained_and_on_what(tuned: Path) -> None:
    report = json.loads((tuned / "r.json").read_text())
    found = report["tuning"]
    assert faults("report", report) == [] and schema("report")["properties"]["tuning"]
    assert 0 < found["steps"] <= 30 and 0 <= found["best_step"] <= 30 and found["minutes"] > 0 and found["blocks"] > 0
    assert found["loss"][1] < found["loss"][0] and found["constants"] > 10
    assert found["samples"] == 48 and found["held_out"] == 16  # of the 64 that were taken
    assert found["features"] and "tune" in report["seconds"]
    lines = [x for x in (tuned / "told.txt").read_text().splitlines() if x.startswith("tuned")]
    assert (
        f"{found['blocks']} blocks on their own, then {found['steps']} steps" in lines[0]
        and "without labels" in lines[0]
    )
    assert "trained on 48 of your own inputs, judged by 16 others" in lines[1] and " -> " in lines[1]


def test_the_plan_lists_what_was_changed_and_verify_refuses_the_rest(tuned: Path) -> None:
    plan = Plan.from_json((tuned / "p.json").read_text())
    assert plan.settings["tune_steps"] == 30 and plan.settings["tune"] is None
    assert verify(DIGITS, tuned / "s.onnx", tuned / "p.json").error < 1e-4
    proto = onnx.load(tuned / "s.onnx")
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    assert {(n.output[0], 1) for n in convs} <= set(plan.refit)
    for name in (convs[0].input[1], convs[-1].input[2]):
        bad = ModelProto()
        bad.CopyFrom(proto)
        tensor = next(t for t in bad.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), name))
        with pytest.raises(VerificationError, match="not those of the plan"):
            verify(DIGITS, bad, tuned / "p.json")
    less = Plan.from_json((tuned / "p.json").read_text().replace(json.dumps([convs[0].output[0], 1]) + ", ", "", 1))
    assert len(less.refit) == len(plan.refit) - 1
    with pytest.raises(VerificationError, match="more than the fitted constants"):
        verify(DIGITS, proto, less)


def test_a_plan_is_applied_and_tuned_to_the_same_bytes_or_not_at_all(tuned: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"apply": tuned / "p.json", "data": CALIBRATION, "benchmark": False}
    again = prune(DIGITS, tune_steps=30, output=tmp_path / "again.onnx", **given)
    assert (tmp_path / "again.onnx").read_bytes() == (tuned / "s.onnx").read_bytes()
    assert again.plan == Plan.from_json((tuned / "p.json").read_text())
    plain = prune(DIGITS, **given)
    assert plain.report.tuning is None and plain.plan.settings["tune_steps"] is None
    assert plain.plan.refit_sha256 != again.plan.refit_sha256
    assert verify(DIGITS, plain.model, plain.plan).error < 1e-4


def test_minutes_end_it(tmp_path: Path) -> None:
    result = prune(DIGITS, Budget("macs", 0.3), data=CALIBRATION, samples=32, tune=0.01, benchmark=False)
    told = result.report.tuning
    assert told is not None and told.stopped == "out of time" and told.steps < 3000
    assert 0.01 <= told.minutes < 1 and result.plan.settings["tune"] == 0.01


def test_blocks_that_take_all_minutes_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: finetuning.Tuning, pace: Any) -> tuple[int, float]:
        time.sleep(0.7)
        return 0, self._judge()

    monkeypatch.setattr(finetuning.Tuning, "blocks", slow)
    told = prune(DIGITS, Budget("macs", 0.3), data=CALIBRATION, samples=32, tune=0.01, benchmark=False).report.tuning
    assert told is not None and told.stopped == "out of time" and told.steps == 0


@pytest.mark.parametrize(("dear", "compared"), [(0.0, 0), (1e9, 1)])
def test_tensors_inside_are_compared_unless_minutes_are_better_spent(
    dear: float, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "DEAR", dear)
    options: dict[str, Any] = {"data": CALIBRATION, "samples": 32, "benchmark": False}
    told = prune(DIGITS, Budget("macs", 0.3), tune=0.01, **options).report.tuning
    assert told is not None and bool(told.features) == bool(compared) and (compared or not told.blocks)
    told = prune(DIGITS, Budget("macs", 0.3), tune_steps=2, **options).report.tuning
    assert told is not None and told.features  # the same bytes, however fast the machine is


GRAPHS = {
    "a weight of two nodes": """g (float[N,6] x) => (float[N,3] y) <float[6,12] w, float[12,12] v, float[3] b, float[12,3] h> {
        a = MatMul(x, w) r = Relu(a) c = MatMul(r, v) s = Relu(c) d = MatMul(s, h) e = Add(d, b)
        f = MatMul(r, h) g2 = Add(f, e) y = Identity(g2) }""",
    "a weight behind a Reshape": """g (float[N,6] x) => (float[N,3] y) <float[72] flat, float[12,3] h, int64[2] shape = {6, 12}> {
        w = Reshape(flat, shape) a = MatMul(x, w) r = Relu(a) y = MatMul(r, h) }""",
    "a branch": """g (float[N,6] x, bool p) => (float[N,3] y) <float[6,12] w, float[12,3] h> {
        a = MatMul(x, w) r = Relu(a)
        y = If (p) <then_branch = one () => (float[N,3] o) <float[12,3] v> { o = MatMul(r, v) },
                    else_branch = two () => (float[N,3] q) { t = MatMul(r, h) q = Relu(t) }> }""",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("options", [{}, {"recover": "none"}, {"depth": "auto"}], ids=str)
def test_every_reader_of_a_changed_constant_is_listed(
    name: str, options: dict[str, Any], always_better: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(GRAPHS[name])
    x = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, **({"p": np.array(True)} if "If" in GRAPHS[name] else {}))
    trained: list[ModelProto] = []
    run = finetuning.Tuning.result

    def kept(tuning: finetuning.Tuning) -> FinetuneResult:
        result = run(tuning)
        trained.append(result.model)
        return result

    monkeypatch.setattr(finetuning.Tuning, "result", kept)
    result = prune(
        model, Budget("macs", 0.6), data=tmp_path / "x.npz", tune_steps=3, round_to=1, benchmark=False, **options
    )
    told = result.report.tuning
    assert told is not None and told.best_step == 3 and told.constants > 1
    assert verify(model, result.model, result.plan).error < 1e-4
    feeds = {"x": x} | ({"p": np.array(True)} if "If" in GRAPHS[name] else {})
    wanted, found, untuned = (Session(Model(m)).run(feeds)[0] for m in (*trained, result.model, model))
    assert np.allclose(found, wanted, atol=1e-5) and not np.allclose(found, untuned, atol=1e-5)
    other = ModelProto()
    other.CopyFrom(result.model)
    for tensor in other.graph.initializer:
        if tensor.name.startswith("h"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), tensor.name))
    assert other != result.model
    with pytest.raises(VerificationError):
        verify(model, other, result.plan)


def test_weights_that_were_sparse_keep_their_zeros(always_better: None) -> None:
    thin = onnxprune.sparsify(DIGITS, sparsity=0.5, store="sparse", benchmark=False).model
    result = prune(
        thin, Budget("ratio", 0.3), data=CALIBRATION, samples=24, recover="none", tune_steps=2, benchmark=False
    )
    plain = prune(thin, apply=result.plan, data=CALIBRATION, recover="none", benchmark=False)
    before, after = (Network(load(m)).parameters for m in (plain.model, result.model))
    kept = [k for k in before if k in after and bool((before[k] == 0).any()) and before[k].dim() > 1]
    assert kept and all(torch.equal(before[k] == 0, after[k] == 0) for k in kept)
    assert any(not torch.equal(before[k], after[k]) for k in kept)
    assert verify(thin, result.model, result.plan).error < 1e-4


def test_what_was_held_out_stays_held_out_by_source() -> None:
    model = net("g (float[N,4] x) => (float[N,2] y) <float[4,2] w> { y = MatMul(x, w) }")
    groups = np.repeat(np.arange(6), 5)
    feeds = [{"x": np.repeat(groups[:, None], 4, axis=1).astype(np.float32)}]
    session, inputs = Session(Model(model)), graph_inputs(model)
    samples = samples_of(feeds, inputs, model=session, sources=Sources("group", (groups,)))
    found = calibrated(samples, inputs, session)
    trained, held = ({float(found.pool.units[k]["x"][0, 0]) for k in some} for some in (found.training, found.held))
    wanted = {float(f["x"][0, 0]) for f, out in zip(samples.feeds, samples.held, strict=True) if out}
    assert held == wanted and trained == {*map(float, range(6))} - wanted and held
    assert len(found.training) + len(found.held) == 30
    two = samples_of([{"x": feeds[0]["x"][:1]}, {"x": feeds[0]["x"][-1:]}], inputs, model=session)
    found = calibrated(two, inputs, session)
    assert len(found.training) == len(found.held) == 1
    assert found.pool.units[found.held[0]]["x"][0, 0] == two.feeds[two.held.index(True)]["x"][0, 0]
    one = samples_of([{"x": feeds[0]["x"][:1]}], inputs, model=session)
    with pytest.raises(BadInputError, match="give more of them"):
        calibrated(one, inputs, session)


def test_features_are_ends_of_blocks_and_the_last_tensor_where_there_are_any() -> None:
    text = """g (float[N,6] x, float[N,1] mask) => (float[N,3] y) <float[6,8] w, float[8] b, float[8,8] v, float[8,3] h> {
        a = MatMul(x, w) biased = Add(a, b) r = Relu(biased) c = MatMul(r, v) masked = Add(c, mask) block = Add(r, masked) s = Relu(block)
        y = MatMul(s, h) }"""
    model = load(net(text))
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal((5, k)).astype(np.float32) for n, k in (("x", 6), ("mask", 1))}
    network = Network(model)
    keys = candidates(network, model.proto)
    teacher = Session(model.beside(showing(model.proto, keys)))
    assert [f.key for f in features(network, teacher, feeds, feeds, {}, 9, at_ends=True)] == ["block", "s"]
    everywhere = {f.key for f in features(network, teacher, feeds, feeds, {}, 9)}
    assert {"biased", "masked", "block"} <= everywhere
    chain = load(
        net(
            "g (float[N,6] x) => (float[N,3] y) <float[6,8] w, float[8,3] h> { a = MatMul(x, w) r = Relu(a) y = MatMul(r, h) }"
        )
    )
    network, feeds = Network(chain), {"x": feeds["x"]}
    teacher = Session(chain.beside(showing(chain.proto, candidates(network, chain.proto))))
    assert [f.key for f in features(network, teacher, feeds, feeds, {}, 9, at_ends=True)] == ["a", "r"]


def test_rows_that_an_input_picks_are_compared_and_rows_that_weights_pick_are_not() -> None:
    text = """g (int64[N,3] x) => (float[N,A,4] y) <float[9,6] table, float[6,6] w, float[6,4] h, float[6] b> {
        e = Gather(table, x) a = MatMul(e, w) m = MatMul(a, w) block = Add(a, m)
        row = ArgMax<axis = 1>(block) back = GatherElements<axis = 1>(block, row) late = Add(back, b) y = MatMul(late, h) }"""
    model = load(net(text))
    network = Network(model)
    teacher = Session(model.beside(showing(model.proto, candidates(network, model.proto))))
    feeds = {"x": np.random.default_rng(0).integers(0, 9, (4, 3))}
    assert [f.key for f in features(network, teacher, feeds, feeds, {}, 9)] == ["a", "m", "block"]


@pytest.mark.slow
def test_the_audit_and_the_quantizer_get_what_was_tuned(always_better: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, ModelProto] = {}
    tuned_by, audited, quantize = carry.tuned_by, carry.audited, carry.quantize

    def tuning(*arguments: Any) -> Any:
        found = tuned_by(*arguments)
        seen["tuned"] = found[0]
        return found

    def quantizing(analysis: Any, model: ModelProto, *arguments: Any) -> Any:
        seen["quantized"] = model
        found = quantize(analysis, model, *arguments)
        seen["written"] = found[0]
        return found

    def auditing(analysis: Any, calibration: Any, model: ModelProto, *arguments: Any) -> Any:
        seen["audited"] = model
        assert calibration.samples.unseen.count + calibration.samples.count == 128
        return audited(analysis, calibration, model, *arguments)

    for name, function in (("tuned_by", tuning), ("quantize", quantizing), ("audited", auditing)):
        monkeypatch.setattr(carry, name, function)
    result = prune(
        DIGITS,
        Budget("max_drop", 5.0),
        data=CALIBRATION,
        samples=60,
        tune_steps=2,
        then_quantize="int8",
        benchmark=False,
    )
    assert seen["tuned"] == seen["quantized"] and seen["written"] == seen["audited"] == result.model
    assert result.report.drop is not None and result.report.tuning is not None
    assert result.report.tuning.samples + result.report.tuning.held_out == 60  # those set aside are not trained on


STRIDED = """
import torch
from onnx import parser
from onnxprune.model.load import load
from onnxprune.training.network import Network

model = parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 5, 8, 8] x, float[11, 5, 1, 1] w, float[11] b) => (float[N, 11, 4, 4] y) {
    y = Conv<kernel_shape = [1, 1], strides = [2, 2]>(x, w, b)
}''')
network = Network(load(model))
given = {"x": torch.randn(5, 5, 8, 8), "w": torch.randn(11, 5, 1, 1, requires_grad=True), "b": torch.randn(11)}
for _ in range(200):
    network(given)["y"].square().mean().backward()
"""


def test_a_strided_convolution_of_single_entries_has_a_gradient_that_stays_within_its_memory() -> None:
    """In a process of its own, as it ends a process where it does not."""
    assert subprocess.run([sys.executable, "-c", STRIDED], cwd=ROOT).returncode == 0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give --data"),
        ({"data": CALIBRATION, "free": ["logits"]}, "leave out --free"),
        ({"data": CALIBRATION, "tune": 0}, "--tune must be above zero minutes"),
        ({"data": CALIBRATION, "tune_steps": 0}, "--tune-steps must be at least 1"),
    ],
)
def test_what_speaks_against_it_is_said_before_anything_is_loaded(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInputError, match=text):
        prune(NOWHERE, Budget("macs", 0.5), **({"tune": 1} | options))


def test_not_beside_training_in_rounds_nor_of_codes(tmp_path: Path) -> None:
    call = ["prune", str(DIGITS), "-o", str(tmp_path / "o.onnx"), "--macs", "0.5", "--data", str(CALIBRATION)]
    found = CliRunner().invoke(main, [*call, "--during-training", "--tune", "1"])
    assert found.exit_code == 2 and "leave out --tune" in found.output
    codes = prune(
        DIGITS, Budget("macs", 0.9), data=CALIBRATION, samples=16, then_quantize="int8", benchmark=False
    ).model
    with pytest.raises(BadInputError, match="this model is quantized"):
        prune(codes, Budget("macs", 0.5), data=CALIBRATION, tune=1)


def test_without_pytorch_the_extra_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from onnxprune.cli import main; main()"
    call = ["prune", NOWHERE, "-o", str(tmp_path / "o.onnx"), "--data", str(CALIBRATION)]
    for more in (["--tune", "1"], ["--tune-steps", "5"]):
        found = subprocess.run([sys.executable, "-c", code, *call, *more], capture_output=True, text=True, check=False)
        assert found.returncode == 2 and "onnxprune[finetune]" in found.stderr


def tuning(teacher: ModelProto, student: ModelProto) -> finetuning.Tuning:
    """A run that has set out, on 64 inputs."""
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    models, settings = [load(m) for m in (student, teacher)], finetune_options_of({})
    feeds, _ = training_data.data_of(models[0], [{"x": x}], settings)
    given = partial(training_data.material_of, models[0], feeds, [{"x": x}], settings)
    return finetuning.Tuning(*models, given, cut=finetuning.Cut(), settings=settings, progress=lambda text: None)


@pytest.mark.parametrize(("gain", "noise"), [(0.5, 0.05), (5.0, 0.0125), (100.0, 0.0)])
def test_no_more_noise_than_the_teacher_bears(gain: float, noise: float) -> None:
    """A wave that is so steep that noise moves it anywhere: of noisy inputs the teacher says nothing that it says of clean ones."""
    text = """g (float[N,8] x) => (float[N,6] y) <float[8,12] a, float gain, float[12,6] b> {
        u = MatMul(x, a)
        v = Mul(u, gain)
        w = Sin(v)
        y = MatMul(w, b)
    }"""
    teacher = net(text)
    for tensor in teacher.graph.initializer:
        if tensor.name == "gain":
            tensor.CopyFrom(numpy_helper.from_array(np.array(gain, np.float32), "gain"))
    student = ModelProto()
    student.CopyFrom(teacher)
    last = next(t for t in student.graph.initializer if t.name == "b")
    last.CopyFrom(numpy_helper.from_array(np.float32(0.8) * numpy_helper.to_array(last), "b"))
    assert tuning(teacher, student).augmentation.noise == noise


def test_steps_that_ruin_a_good_start_are_undone_and_become_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(schedule: loop.Schedule) -> loop.Trained:
        network, objective, training, held = setting(0.01)

        def prepare(step: int) -> list[Target]:
            return [training[step % len(training)]]

        def losses(batch: list[Target]) -> Iterator[torch.Tensor]:
            yield from (objective(t, network(t.feeds, [*ENDS, "y"])) for t in batch)

        return loop.train(network, prepare, losses, lambda: apart(network, held, "y"), schedule, lambda text: None)

    schedule = loop.Schedule(60, rate=0.5, evaluations=20, patience=0, is_relative=True)
    found = trained(schedule)
    assert found.history[0][2] > 10 * found.before and found.after < 0.5 * found.before
    monkeypatch.setattr(loop, "LESS", 1.0)
    as_large = trained(schedule)
    assert found.after < 0.5 * as_large.after, (found.after, as_large.after, found.before)
    monkeypatch.setattr(loop, "RISE", float("inf"))
    assert trained(schedule).after > 0.5 * found.before
