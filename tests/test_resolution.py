"""A coarser picture inside the model: which ones may be, that the model computes what the original does of a resized picture, and that
it is taken only where it loses less than channels alone.

Seen red: scales that round down to one pixel less, a model with a flattening whose outputs no longer fit, a plan whose sizes are taken on
trust, damages that start at what the coarser picture lost.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, helper

import onnxprune
from onnxprune import BadInputError, Budget, TargetNotReachableError
from onnxprune.analyse.observe import analysis_of
from onnxprune.choose import resolutions
from onnxprune.choose.options import Options, completed
from onnxprune.choose.resolutions import coarser, possible
from onnxprune.choose.subject import uncalibrated, whole
from onnxprune.cli import main
from onnxprune.clock import Clock, silent
from onnxprune.cut.resolution import Picture, Resolution, pictures, resized, with_coarse
from onnxprune.model.load import load
from onnxprune.training.network import Network
from tests.made_up_device import Device
from tests.oracle import Array, net, session

SMOOTH = 8  # pixels of a side that the pictures really have

POOLED = """g (float[N,3,64,64] x) => (float[N,24] y)
    <float[5,3,1,1] a, float[5] ab, float[8,5,1,1] b, float[8] bb, float[12,8,1,1] c, float[12] cb, float[12,24] head> {
    c1 = Conv(x, a, ab)
    r1 = Abs(c1)
    p1 = AveragePool<kernel_shape=[4,4], strides=[4,4]>(r1)
    c2 = Conv(p1, b, bb)
    r2 = Mul(c2, c2)
    p2 = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r2)
    c3 = Conv(p2, c, cb)
    r3 = Abs(c3)
    p = GlobalAveragePool(r3)
    f = Flatten<axis=1>(p)
    y = MatMul(f, head)
}"""
FLAT = """g (float[N,3,64,64] x) => (float[N,10] y) <float[8,3,3,3] a, float[12,8,3,3] b, float[3072,10] head> {
    c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, a)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, b)
    r2 = Relu(c2)
    f = Flatten<axis=1>(r2)
    y = MatMul(f, head)
}"""
LAST = """g (float[N,64,96,3] x) => (float[N,10] y) <float[16,3,3,3] a, float[24,16,3,3] b, float[24,10] head> {
    t = Transpose<perm=[0,3,1,2]>(x)
    c1 = Conv<pads=[1,1,1,1], strides=[4,4]>(t, a)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, b)
    p = GlobalAveragePool(c2)
    f = Flatten<axis=1>(p)
    y = MatMul(f, head)
}"""


def linear(x: Array, axis: int, size: int) -> Array:
    """Interpolated between the centres of pixels."""
    count = x.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    low = np.minimum(at.astype(int), count - 2)
    part = (at - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(4)])
    return x.take(low, axis) * (1 - part) + x.take(low + 1, axis) * part


def shown(count: int) -> Array:
    """Smooth pictures of several brightnesses and contrasts: of few pixels, enlarged."""
    rng = np.random.default_rng(1)
    coarse = rng.standard_normal((count, 3, SMOOTH, SMOOTH)) * rng.lognormal(0, 0.7, (count, 3, 1, 1))
    coarse = (coarse + 2 * rng.standard_normal((count, 3, 1, 1))).astype(np.float32)
    return linear(linear(coarse, 2, 64), 3, 64)


def data(tmp_path: Path, **arrays: Array) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return path


def saved(tmp_path: Path, model: ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def pruned(tmp_path: Path, text: str = POOLED, macs: float = 0.5, **options: Any) -> onnxprune.PruneResult:
    model = saved(tmp_path, net(text))
    return onnxprune.prune(model, Budget("macs", macs), data=data(tmp_path, x=shown(48)), benchmark=False, **options)


# ---------------------------------------------------------------- the resized model


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("size", [(56, 56), (33, 47), (1, 64), (63, 50)])
def test_the_model_reads_a_resized_picture(opset: int, size: tuple[int, int]) -> None:
    model = net("g (float[N,3,64,64] x) => (float[N,3,H,W] y) { y = Relu(x) }", opset=opset)
    made = resized(model, Resolution("x", (2, 3), size))
    onnx.checker.check_model(made)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    (found,) = session(made).run(None, {"x": x})
    expected = linear(linear(x, 2, size[0]), 3, size[1])
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-4)


def test_every_size_is_met_exactly() -> None:
    from onnxprune.cut.resolution import _scale

    for before in (64, 112, 224, 299, 384, 1001):
        for after in range(1, before + 1):
            scale = _scale(before, after)  # in the floats of ONNX Runtime, and those of ONNX's shape inference
            assert int(np.float32(before) * scale) == int(before * float(scale)) == after


@pytest.mark.parametrize("size", [(81, 109), (88, 94), (111, 57)])
def test_shape_inference_and_pytorch_see_the_size_that_onnx_runtime_sees(size: tuple[int, int]) -> None:
    model = net("g (float[1,3,112,112] x) => (float[1,3,H,W] y) { y = Relu(x) }", opset=17)
    made = resized(model, Resolution("x", (2, 3), size))
    inferred = onnx.shape_inference.infer_shapes(made).graph.value_info
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    assert dims[made.graph.node[0].output[0]] == [1, 3, *size]
    x = np.random.default_rng(0).standard_normal((1, 3, 112, 112)).astype(np.float32)
    (expected,) = session(made).run(None, {"x": x})
    found = Network(load(made))({"x": torch.from_numpy(x)})["y"]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_what_lies_in_branches_reads_the_resized_picture_too() -> None:
    model = net(
        """g (float[1,3,64,64] x, bool c) => (float[1,3,1,1] y) {
        y = If (c) <then_branch = t () => (float[1,3,1,1] a) { a = GlobalAveragePool(x) },
                    else_branch = e () => (float[1,3,1,1] b) { b = GlobalMaxPool(x) }>
        }"""
    )
    made = resized(model, Resolution("x", (2, 3), (32, 32)))
    inside = [n for a in made.graph.node[1].attribute for n in a.g.node]
    assert [list(n.input) for n in inside] == [["x__resized"]] * 2


def test_the_original_with_its_tensors_at_a_resolution() -> None:
    model, resolution = net(POOLED), Resolution("x", (2, 3), (48, 48))
    both = with_coarse(model, resolution)
    assert both is not None
    both.graph.output.append(helper.make_empty_tensor_value_info("r2"))
    coarse = resized(model, resolution)
    coarse.graph.output.append(helper.make_empty_tensor_value_info("r2"))
    x = shown(3)
    outputs, inner = session(both).run(None, {"x": x})
    np.testing.assert_allclose(outputs, session(model).run(None, {"x": x})[0], atol=1e-5)
    np.testing.assert_allclose(inner, session(coarse).run(None, {"x": x})[1], atol=1e-5)


def test_pictures_are_inputs_of_a_fixed_size_with_a_few_channels() -> None:
    def found(declared: str) -> list[Picture]:
        return pictures(net(f"g ({declared} x) => ({declared} y) {{ y = Identity(x) }}"))

    assert found("float[N,3,64,48]") == [Picture("x", (2, 3), (64, 48))]
    assert found("float[N,64,48,1]") == [Picture("x", (1, 2), (64, 48))]
    assert found("float[N,3,H,W]") == found("float[N,80,64,48]") == found("float[N,3,64]") == []
    assert found("uint8[N,3,64,48]") == []


# ---------------------------------------------------------------- which ones


def subject(model: ModelProto) -> Any:
    return uncalibrated(analysis_of(load(model), Options().scope))


def test_sides_are_divided_as_those_of_the_original() -> None:
    sizes = [r.size for r in possible(subject(net(POOLED)), 0.3)]
    assert sizes == [(56, 56), (48, 48), (40, 40)]  # 32 x 32 has a fourth of the MACs
    assert [r.size for r in possible(subject(net(LAST)), 0.3)] == [(56, 80), (48, 72), (40, 64)]
    assert [r.axes for r in possible(subject(net(LAST)), 0.6)] == [(1, 2)] * 2


def test_small_and_old_and_several_pictures_stay() -> None:
    assert not list(possible(subject(net(POOLED.replace("64,64", "56,56"))), 0.3))
    assert not list(possible(subject(net(POOLED, opset=10)), 0.3))
    two = "g (float[N,3,64,64] x, float[N,3,64,64] z) => (float[N,3,64,64] y) { y = Add(x, z) }"
    assert not list(possible(subject(net(two)), 0.3))


def test_a_model_that_flattens_positions_declines() -> None:
    with pytest.raises(BadInputError):
        coarser(subject(net(FLAT)), Resolution("x", (2, 3), (56, 56)), Options(), Clock(silent))


def test_outputs_of_another_size_decline() -> None:
    maps = "g (float[N,3,64,64] x) => (float[N,4,H,W] y) <float[4,3,3,3] w> { y = Conv<strides=[8,8]>(x, w) }"
    with pytest.raises(BadInputError, match="outputs would have another size"):
        coarser(subject(net(maps)), Resolution("x", (2, 3), (56, 56)), Options(), Clock(silent))


# ---------------------------------------------------------------- the whole


def test_smooth_pictures_are_read_coarser(tmp_path: Path) -> None:
    made = pruned(tmp_path)
    told = made.report.resolution
    assert told is not None and told.before == (64, 64)
    assert told.after in {(56, 56), (48, 48)} and told.own_size is not None
    taken = next(r for r in told.looked if r.size == told.after)
    assert taken.verdict == "taken" and taken.damage is not None
    assert taken.damage < told.own_size
    macs = made.plan.macs
    assert macs is not None and macs.after <= 0.5 * macs.before
    assert made.plan.resolution == Resolution("x", (2, 3), told.after)
    before, after = net(POOLED).graph, made.model.graph
    assert [i.SerializeToString() for i in before.input] == [i.SerializeToString() for i in after.input]
    assert session(made.model).run(None, {"x": shown(5)})[0].shape == (5, 24)


def test_the_finished_model_is_nearer_to_the_original_than_channels_alone(tmp_path: Path) -> None:
    x = np.roll(shown(64), 7, axis=3)[48:]  # pictures that were not shown
    (wanted,) = session(net(POOLED)).run(None, {"x": x})

    def apart(**options: Any) -> float:
        (found,) = session(pruned(tmp_path, **options).model).run(None, {"x": x})
        return float(np.square(found - wanted).mean())

    assert apart() < apart(resolution="off")


def test_the_plan_proves_and_repeats_it(tmp_path: Path) -> None:
    made = pruned(tmp_path)
    source = tmp_path / "model.onnx"
    onnxprune.verify(source, made.model, made.plan)
    again = onnxprune.prune(source, apply=made.plan, data=tmp_path / "data.npz", benchmark=False)
    assert again.model.SerializeToString(deterministic=True) == made.model.SerializeToString(deterministic=True)
    read = json.loads(made.plan.to_json())["resolution"]
    assert read == {"input": "x", "axes": [2, 3], "size": list(made.plan.resolution.size)}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"input": "z"}, "no picture of a fixed size"),
        ({"axes": (1, 2)}, "along axes"),
        ({"size": (128, 64)}, "and it has"),
        ({"size": (0, 64)}, "and it has"),
    ],
)
def test_plans_are_not_trusted(tmp_path: Path, edit: dict[str, Any], says: str) -> None:
    made = pruned(tmp_path)
    assert made.plan.resolution is not None
    other = replace(made.plan, resolution=replace(made.plan.resolution, **edit))
    with pytest.raises(BadInputError, match=says):
        onnxprune.verify(tmp_path / "model.onnx", made.model, other)


def test_what_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolutions, "LITTLE", 0.0)
    made = pruned(tmp_path, FLAT)
    told = made.report.resolution
    assert told is not None and told.after == told.before == (64, 64) and made.plan.resolution is None
    assert [r.verdict[:18] for r in told.looked] == ["it does not run so"]


def test_noise_keeps_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolutions, "LITTLE", 0.0)
    noise = np.random.default_rng(3).standard_normal((48, 3, 64, 64)).astype(np.float32)
    model = saved(tmp_path, net(POOLED))
    made = onnxprune.prune(model, Budget("macs", 0.8), data=data(tmp_path, x=noise), benchmark=False)
    told = made.report.resolution
    assert made.plan.resolution is None and told is not None
    assert [r.verdict for r in told.looked] == ["loses more than the one before"]


def test_where_it_is_looked_for() -> None:
    def of(budget: Budget, **given: Any) -> str | None:
        return completed(Options(data="d.npz", **given), budget).resolution

    assert of(Budget("macs", 0.5)) == "auto"
    assert of(Budget("speedup", 2)) == of(Budget("latency", 3.5)) == "auto"
    assert of(Budget("speedup", 2), depth="only") == of(Budget("max_drop", 0.01)) == "off"
    assert of(Budget("macs", 0.5), resolution="off") == "off"
    assert of(Budget("params", 0.5)) == of(Budget("macs", 0.5), depth="auto") == "off"
    assert completed(Options(), Budget("macs", 0.5)).resolution == "off"
    for budget, given in ((Budget("ratio", 0.5), {}), (Budget("macs", 0.5), {"depth": "auto"})):
        with pytest.raises(BadInputError, match="--resolution auto needs --macs"):
            of(budget, resolution="auto", **given)


def test_damages_start_at_nothing(tmp_path: Path) -> None:
    """What groups are chosen by is what their own cut does, without what the coarser picture did."""
    model, path = load(net(POOLED)), data(tmp_path, x=shown(48))
    settings = completed(Options(data=path), Budget("macs", 0.5))
    original = whole(analysis_of(model, settings.scope), settings, Clock(silent))
    made = coarser(original, Resolution("x", (2, 3), (40, 40)), settings, Clock(silent))
    assert made.calibration is not None and made.against is not None
    assert not np.allclose(made.calibration.outputs[0][0], made.against.outputs[0][0], rtol=1e-3)
    (own,) = session(resized(net(POOLED), Resolution("x", (2, 3), (40, 40)))).run(
        None, {"x": made.against.samples.feeds[0]["x"]}
    )
    np.testing.assert_allclose(made.calibration.outputs[0][0], own, atol=1e-4)
    assert resolutions.CLOSE < 1.2


@pytest.mark.slow
def test_it_goes_with_training_and_quantization(tmp_path: Path) -> None:
    made = pruned(tmp_path, tune_steps=20)
    assert made.plan.resolution is not None and made.report.tuning is not None
    assert set(made.report.tuning.features) & {"c1", "r1", "c2", "r2", "c3", "r3"}  # positions of the coarser picture
    onnxprune.verify(tmp_path / "model.onnx", made.model, made.plan)
    quantized = pruned(tmp_path, then_quantize="int8")
    assert quantized.plan.resolution == made.plan.resolution
    names = [v.name for v in quantized.report.variants]
    assert len(names) == 4
    assert session(quantized.model).run(None, {"x": shown(5)})[0].shape == (5, 24)


@pytest.mark.parametrize("suffix", ["html", "md", "json"])
def test_reports_say_at_which_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"report.{suffix}"
    made = pruned(tmp_path, report=path)
    assert made.plan.resolution is not None
    height, width = made.plan.resolution.size
    text = path.read_text(encoding="utf-8")
    if suffix == "json":
        assert json.loads(text)["resolution"]["after"] == [height, width]
    else:
        assert f"is read at {height}x{width} instead of 64x64" in text


def test_the_command_line_says_at_which_size(tmp_path: Path) -> None:
    model, calib, out = saved(tmp_path, net(POOLED)), data(tmp_path, x=shown(48)), tmp_path / "small.onnx"
    given = ["prune", str(model), "-o", str(out), "--macs", "0.5", "--data", str(calib)]
    found = CliRunner().invoke(main, given)
    assert found.exit_code == 0 and re.search(r"resized   'x' is read at (\d+)x\1 instead of 64x64", found.output)
    found = CliRunner().invoke(main, [*given, "--resolution", "off"])
    assert found.exit_code == 0 and "resized" not in found.output


def test_a_target_of_time_looks_at_coarser_pictures_too(tmp_path: Path) -> None:
    device, model = Device(1), saved(tmp_path, net(POOLED))

    def timed(**options: Any) -> onnxprune.PruneResult:
        calib = data(tmp_path, x=shown(48))
        return onnxprune.prune(model, Budget("speedup", 1.7), data=calib, runner=device, depth="off", **options)

    made, alone = timed(), timed(resolution="off")
    assert made.plan.resolution is not None and alone.plan.resolution is None
    feeds = {"x": shown(2)}
    before, after = (device.milliseconds(m, feeds) for m in (net(POOLED), made.model))
    assert 1.7 <= before / after <= 1.7 * 1.06
    told = made.report.resolution
    assert told is not None and told.own_size is not None and made.report.repair is not None
    assert min(r.damage for r in told.looked if r.damage is not None) < told.own_size
    onnxprune.verify(model, made.model, made.plan)


def test_a_coarser_picture_reaches_what_channels_do_not(tmp_path: Path) -> None:
    """Channels that stay are a lower bound of what channels alone reach."""
    stays = ("a", "b")
    with pytest.raises(TargetNotReachableError):
        pruned(tmp_path, macs=0.75, exclude=stays, resolution="off")
    made = pruned(tmp_path, macs=0.75, exclude=stays)
    assert made.plan.resolution is not None and made.plan.macs is not None
    assert made.plan.macs.after <= 0.75 * made.plan.macs.before
    with pytest.raises(TargetNotReachableError):
        pruned(tmp_path, macs=0.05, exclude=stays)


def test_jobs_of_another_size_are_other_jobs(tmp_path: Path) -> None:
    """What is kept of the damages at one resolution is not taken for those at another."""
    made, kept = pruned(tmp_path), tmp_path / "kept"
    for _ in range(2):
        found = pruned(tmp_path, checkpoint=kept)
        assert found.plan.resolution == made.plan.resolution
        assert found.model.SerializeToString(deterministic=True) == made.model.SerializeToString(deterministic=True)
