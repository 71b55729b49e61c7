"""Fine-tuning: the graph in PyTorch equals ONNX Runtime, its gradients equal finite differences, and no result is worse than its start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from onnx.parser import parse_model

from onnxprune import BadInputError, Budget, prune, sparsify
from onnxprune.api.finetune import finetune
from onnxprune.api.gradual import prune_during_training, ramp
from onnxprune.calibrate.judging import Judged
from onnxprune.cli import main
from onnxprune.errors import UnsupportedModelError
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.runtime import Session, find_feeds
from onnxprune.training import check as checking
from onnxprune.training.augment import Augmentation, augmented, space
from onnxprune.training.functions import FUNCTIONS
from onnxprune.training.functions.base import Function
from onnxprune.training.losses import Supervised
from onnxprune.training.network import Network
from onnxprune.training.objective import Objective
from onnxprune.training.samples import batches, pool, split
from tests.zoo import files, load_graph

DIGITS = Path(__file__).resolve().parent.parent / "models" / "digits.onnx"
CALIBRATION = DIGITS.with_name("digits_calib.npz")
STEP = 1e-6
SMOOTH = 1e-6  # float64 central differences of step 1e-6: their own error is below


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model(text: str, **values: tuple[int, ...] | np.ndarray[Any, Any]) -> onnx.ModelProto:
    """A model as text; `values`: initializers, drawn where only a shape is given."""
    opset, body = ("17", text) if not text.startswith("opset") else (text[5:7], text[8:])
    proto = parse_model(f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]> agraph {body}')
    rng = np.random.default_rng(0)
    for name, value in values.items():
        array = (0.4 * rng.standard_normal(value)).astype(np.float32) if isinstance(value, tuple) else value
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


CONV = "(float[N,3,9,9] x) => (float[N,a,b,c] y) { y = Conv"
FAMILIES: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": lambda: model(CONV + " <pads = [1,0,2,1], strides = [2,1]> (x, w, b) }", w=(4, 3, 3, 3), b=(4,)),
    "conv auto_pad": lambda: model(CONV + ' <auto_pad = "SAME_LOWER", strides = [2,2]> (x, w) }', w=(4, 3, 3, 4)),
    "depthwise": lambda: model(CONV + " <group = 3, dilations = [2,2]> (x, w, b) }", w=(6, 1, 3, 3), b=(6,)),
    "grouped": lambda: model("(float[N,4,9,9] x) => (float[N,a,b,c] y) { y = Conv <group = 2> (x, w) }", w=(6, 2, 3, 3)),
    "conv 1d": lambda: model("(float[N,3,9] x) => (float[N,a,b] y) { y = Conv (x, w, b) }", w=(4, 3, 3), b=(4,)),
    "conv 3d": lambda: model("(float[N,2,4,4,4] x) => (float[N,a,b,c,d] y) { y = Conv (x, w) }", w=(3, 2, 2, 2, 2)),
    "transposed": lambda: model(
        "(float[N,4,5,5] x) => (float[N,a,b,c] y) { y = ConvTranspose"
        " <group = 2, strides = [2,2], pads = [1,0,0,1], output_padding = [1,1]> (x, w, b) }",
        w=(4, 2, 3, 3), b=(4,),
    ),
    "transposed output_shape": lambda: model(
        "(float[N,2,5,5] x) => (float[N,a,b,c] y) { y = ConvTranspose <strides = [2,2], output_shape = [10,10]> (x, w) }",
        w=(2, 3, 3, 3),
    ),
    "batch norm": lambda: model(
        "(float[N,3,4,4] x) => (float[N,3,4,4] y) { y = BatchNormalization (x, s, b, m, v) }",
        s=(3,), b=(3,), m=(3,), v=np.array([0.5, 1, 2], np.float32),
    ),
    "standardised weights": lambda: model(
        """(float[N,3,5,5] x) => (float[N,4,5,5] y) <float[4] one = {1.0, 1.0, 1.0, 1.0}, float[4] zero = {0.0, 0.0, 0.0, 0.0},
        int64[4] shape = {4, 3, 1, 1}> {
        n, m, v = BatchNormalization <training_mode = 1> (w, s, b, zero, one) k = Reshape (n, shape) y = Conv (x, k) }""",
        w=(1, 4, 3), s=(4,), b=(4,),
    ),
    "layer norm": lambda: model("(float[N,5,8] x) => (float[N,5,8] y) { y = LayerNormalization (x, s, b) }", s=(8,), b=(8,)),
    "layer norm spelled out": lambda: model(
        """(float[N,5,8] x) => (float[N,5,8] y) <float two = {2.0}, float eps = {0.00001}> {
        m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) q = Pow (d, two) v = ReduceMean <axes = [-1]> (q)
        e = Add (v, eps) r = Sqrt (e) n = Div (d, r) t = Mul (n, s) y = Add (t, b) }""",
        s=(8,), b=(8,),
    ),
    "instance and group norm": lambda: model(
        """opset21 (float[N,4,5,5] x) => (float[N,4,5,5] y) {
        h = InstanceNormalization (x, s, b) y = GroupNormalization <num_groups = 2> (h, t, c) }""",
        s=(4,), b=(4,), t=(4,), c=(4,),
    ),
    "attention": lambda: model(
        """(float[N,5,8] x) => (float[N,5,8] y) <float root = {0.5}> {
        q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)
        kt = Transpose <perm = [0,2,1]> (k) s = MatMul (q, kt) t = Mul (s, root) p = Softmax (t) a = MatMul (p, v)
        y = MatMul (a, wo) }""",
        wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8),
    ),
    "gemm": lambda: model(
        "(float[N,6] x) => (float[N,4] y) { h = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) y = Gemm (h, u, c) }",
        w=(5, 6), b=(5,), u=(5, 4), c=(4,),
    ),
    "einsum": lambda: model(
        'opset17 (float[N,6] x) => (float[N,4] y) { y = Einsum <equation = "ni,io->no"> (x, w) }', w=(6, 4)
    ),
    "embedding": lambda: model(
        "(int64[N,3] x) => (float[N,3,4] y) { e = Gather (table, x) y = MatMul (e, w) }", table=(7, 5), w=(5, 4)
    ),
    "shuffle": lambda: model(
        """(float[N,4,4,4] x) => (float[N,a,b,c] y) <int64[5] five = {0, 2, 2, 4, 4}, int64[4] four = {0, -1, 4, 4},
        int64[1] lo = {1}, int64[1] hi = {-9}, int64[1] ax = {1}, int64[1] back = {-1}> {
        h = Conv (x, w) r = Reshape (h, five) t = Transpose <perm = [0,2,1,3,4]> (r) f = Reshape (t, four)
        p, q = Split <axis = 1> (f) s = Slice (q, lo, hi, ax, back) y = Concat <axis = 1> (s, p) }""",
        w=(4, 4, 1, 1),
    ),
    "pooling": lambda: model(
        """(float[N,3,9,9] x) => (float[N,a,b,c] y) { h = Conv (x, w)
        p = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,0,0], ceil_mode = 1> (h)
        q = AveragePool <kernel_shape = [2,2], strides = [2,2], pads = [1,0,1,0], count_include_pad = 1> (p)
        r = AveragePool <kernel_shape = [2,2], pads = [0,0,1,1]> (q) y = GlobalAveragePool (r) }""",
        w=(4, 3, 1, 1),
    ),
    "resize": lambda: model(
        """(float[N,2,5,5] x) => (float[N,a,b,c] y) <float[4] up = {1.0, 1.0, 2.0, 1.6}> { h = Conv (x, w)
        i = Resize <mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"> (h, , up)
        j = Resize <mode = "cubic", coordinate_transformation_mode = "align_corners"> (i, , up)
        y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (j, , up) }""",
        w=(3, 2, 1, 1),
    ),
    "resize antialias": lambda: model(
        """opset18 (float[N,2,9,9] x) => (float[N,a,b,c] y) <int64[2] two = {7, 4}, float[2] up = {0.5, 0.6}> { h = Conv (x, w)
        i = Resize <mode = "linear", antialias = 1, axes = [2,3]> (h, , , two)
        j = Resize <mode = "cubic", antialias = 1, axes = [2,3], exclude_outside = 1> (h, , up)
        k = Resize <mode = "cubic", antialias = 1, axes = [2,3]> (i, , , five)
        l = Resize <mode = "linear", antialias = 1, axes = [2,3]> (j, , , five) y = Add (k, l) }""",
        w=(3, 2, 1, 1), five=np.array([3, 3]),
    ),
    "activations": lambda: model(
        """opset20 (float[N,4] x) => (float[N,4] y) { h = MatMul (x, w) a = Gelu (h) b = HardSwish (h) c = Elu (h) d = Selu (h)
        e = Softplus (h) f = PRelu (h, slope) g = Sigmoid (h) i = Erf (h) j = Mish (h) k = LeakyRelu (h)
        y = Sum (a, b, c, d, e, f, g, i, j, k) }""",
        w=(4, 4), slope=(4,),
    ),
    "lstm": lambda: model(
        "(float[5,N,3] x) => (float[5,a,N,4] y, float[a,N,4] h, float[a,N,4] c) {"
        ' y, h, c = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b) }',
        w=(2, 16, 3), r=(2, 16, 4), b=(2, 32),
    ),
    "gru": lambda: model(
        "(float[5,N,3] x) => (float[5,a,N,4] y, float[a,N,4] h) {"
        ' y, h = GRU <hidden_size = 4, direction = "reverse", linear_before_reset = 1> (x, w, r, b) }',
        w=(1, 12, 3), r=(1, 12, 4), b=(1, 24),
    ),
    "branch": lambda: branching(),
    "microsoft": lambda: model(
        """(float[N,5,8] x) => (float[N,5,8] y) { h = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, w)
        i = com.microsoft.BiasGelu (h, c) y = com.microsoft.SkipLayerNormalization (i, x, s, b) }""",
        w=(8, 8), c=(8,), s=(8,), b=(8,),
    ),
}  # fmt: skip


def branching() -> onnx.ModelProto:
    """A weight inside the branch of an If."""
    proto = model(
        """(float[N,4] x) => (float[N,4] y) { m = ReduceSum <keepdims = 0> (x) z = Sub (m, m) c = Equal (m, m)
        y = If (c) <then_branch = g () => (float[N,4] t) { t = MatMul (x, w) }, else_branch = e () => (float[N,4] u) { u = Relu (x) }> }"""
    )
    branch = next(a.g for n in proto.graph.node for a in n.attribute if a.name == "then_branch")
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    branch.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


def slope(network: Network, feeds: dict[str, Any], seed: int = 0) -> tuple[float, float]:
    """The derivative of a random projection of the outputs along a random direction of all weights: by gradients, by differences."""
    rng = np.random.default_rng(seed)
    outputs = list(network.program.body.outputs)
    seeds = {n: torch.from_numpy(rng.standard_normal(tuple(v.shape))) for n, v in network(feeds).items()}
    ways = {k: torch.from_numpy(rng.standard_normal(tuple(p.shape))) for k, p in network.parameters.items()}

    def loss() -> Any:
        found = network(feeds)
        return sum((found[n] * seeds[n]).sum() for n in outputs)

    gradients = torch.autograd.grad(loss(), list(network.parameters.values()))
    by_gradient = sum(float((g * ways[k]).sum()) for k, g in zip(network.parameters, gradients, strict=True))
    start = {k: p.detach().clone() for k, p in network.parameters.items()}
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for k, p in network.parameters.items():
                p.copy_(start[k] + sign * STEP * ways[k])
            ends.append(float(loss()))
    return by_gradient, (ends[0] - ends[1]) / (2 * STEP)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients(family: str) -> None:
    """Float32 against ONNX Runtime (1e-4: other orders of sums, other approximations of Erf); float64 gradients against central differences."""
    loaded = load(FAMILIES[family]())
    feeds = find_feeds(loaded)[0]
    network = Network(loaded)
    assert checking.check(network, feeds) < 1e-4
    assert not network.opaque and not network.frozen()
    drawn = {t.name for t in loaded.proto.graph.initializer if t.name not in ("m", "v")} or {"w"}
    assert {k.split("//")[-1] for k in network.weights} == drawn - {
        "two",
        "eps",
        "root",
        "five",
        "four",
        "lo",
        "hi",
        "ax",
        "back",
        "up",
        "one",
        "zero",
        "shape",
    }
    by_gradient, by_difference = slope(Network(loaded, torch.float64), feeds)
    assert by_gradient == pytest.approx(by_difference, rel=SMOOTH, abs=1e-6)


def test_a_node_that_runs_in_onnx_runtime_keeps_its_constant_sizes() -> None:
    """As an input without values, ONNX's shape inference refuses them."""
    loaded = load(
        model(
            """opset18 (float[N,2,9,9] x) => (float[N,a,b,c] y) <int64[2] size = {5, 5}> {
            i = Resize <mode = "linear", axes = [2,3], keep_aspect_ratio_policy = "not_larger"> (x, , , size) y = Conv (i, w) }""",
            w=(3, 2, 1, 1),
        )
    )
    network = Network(loaded)
    assert checking.check(network, find_feeds(loaded)[0]) < 1e-4
    assert [s.op for s in network.opaque.values()] == ["Resize"]


PREDICTED = {  # voices: durations are rounded to numbers of frames, and no gradient passes that; operators that run in ONNX Runtime
    "hf__vits__legacy": {"RandomNormalLike", "GatherND"},
    "hf__vits_duration__dynamo": {"RandomNormalLike"},
}


@pytest.mark.parametrize("name", files())
def test_graphs_of_exporters(name: str) -> None:
    """Outputs equal, every weight with a gradient; two graphs share some among norms' scales and running variances."""
    loaded = load(load_graph(files()[name]))
    feeds = find_feeds(loaded)[0]
    network = Network(loaded)
    assert checking.check(network, feeds) < 1e-4
    assert {s.op for s in network.opaque.values()} == PREDICTED.get(name, set()) and network.weights
    frozen = [f.key for f in network.frozen()]
    assert bool(frozen) == (name in PREDICTED) and all(key.startswith("m.duration_predictor.") for key in frozen)


def test_what_is_written_is_what_was_trained_and_nothing_else() -> None:
    proto = branching()
    network = Network(load(proto))
    assert network.export().SerializeToString() == proto.SerializeToString()
    with torch.no_grad():
        for parameter in network.parameters.values():
            parameter.mul_(2)
    doubled = network.export()
    x = {"x": np.ones((2, 4), np.float32)}
    assert np.allclose(Session(Model(doubled)).run(x)[0], 2 * Session(Model(proto)).run(x)[0])
    for a, b in zip(proto.graph.node, doubled.graph.node, strict=True):
        assert (a.op_type, list(a.input), list(a.output)) == (b.op_type, list(b.input), list(b.output))


def test_what_has_no_gradient_runs_in_onnx_runtime_and_is_said() -> None:
    proto = model(
        """(float[N,4] x) => (float[N,4] y) { h = MatMul (x, w) f = Hardmax (h) g = MatMul (f, u) y = Relu (g) }""",
        w=(4, 4),
        u=(4, 4),
    )
    network = Network(load(proto))
    assert checking.check(network, {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}) < 1e-5
    assert [s.op for s in network.opaque.values()] == ["Hardmax"]
    frozen = network.frozen()
    assert [f.key for f in frozen] == ["w"]
    assert "Hardmax" in frozen[0].nodes[0]


def test_masks_bounds_and_statistics_are_no_weights() -> None:
    proto = model(
        """(float[N,4] x) => (float[N,4] y) <float[4] keep = {0.0, 1.0, 1.0, 0.0}, float[4] far = {0.0, -1e30, 0.0, 0.0}> {
        a = MatMul (x, w) b = Mul (a, keep) c = Add (b, far) d = Add (c, shared) s = Pow (d, shared) y = Add (s, late) }""",
        w=(4, 4), shared=(4,), late=(4,),
    )  # fmt: skip
    assert set(Network(load(proto)).weights) == {"w", "late"}


def test_the_first_node_that_deviates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "Sigmoid", Function(lambda c: torch.tanh(c[0])))
    proto = model("(float[N,4] x) => (float[N,4] y) { h = MatMul (x, w) s = Sigmoid (h) y = Relu (s) }", w=(4, 4))
    network = Network(load(proto))
    with pytest.raises(UnsupportedModelError, match="first at Sigmoid 's'"):
        checking.check(network, {"x": np.ones((2, 4), np.float32)})


# ---------------------------------------------------------------- data


def test_pool_cuts_samples_and_fixed_batches() -> None:
    free = model("(float[N,2] x) => (float[N,2] y) { y = Relu (x) }")
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = pool([{"x": x, "labels": np.arange(6)}], list(free.graph.input), Session(load(free)))
    assert len(found.units) == 6 and found.joins
    joined = found.joined([4, 1])
    assert joined["labels"].tolist() == [4, 1] and np.array_equal(joined["x"], x[[4, 1]])
    fixed = model("(float[3,2] x) => (float[3,2] y) { y = Relu (x) }")
    found = pool([{"x": x}], list(fixed.graph.input), Session(load(fixed)))
    assert len(found.units) == 2 and not found.joins and [len(b) for b in found.bundles([0, 1], 8)] == [1, 1]


def test_batches_depend_on_seed_and_step_alone() -> None:
    training, held = split(range(100), 0)
    assert len(held) == 10 and not set(training) & set(held)
    source, later = batches(None, training, 16, 3), batches(None, training, 16, 3, start=8)  # type: ignore[arg-type]
    first = dict(next(source) for _ in range(12))
    assert next(later)[1] == first[8]
    epoch = [i for k in range(5) for i in first[k]]
    assert len(set(epoch)) == 80


def test_augmentation_keeps_shares_and_other_inputs() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 1, 16, 16)).astype(np.float32)
    ids = np.arange(32)
    found = augmented({"x": x, "ids": ids}, rng, Augmentation(1.0, 0.0, 0.0, 0.0))
    share = found.share.reshape(-1, 1, 1, 1)
    assert np.allclose(found.feeds["x"], share * x + (1 - share) * x[found.other])
    assert found.feeds["ids"] is ids and found.feeds["x"].dtype == np.float32
    moved = augmented({"x": x}, rng, Augmentation(0.0, 0.0, 0.2, 0.0)).feeds["x"]
    assert moved.shape == x.shape and not np.array_equal(moved, x) and set(np.unique(moved)) <= set(np.unique(x))
    assert space(x) == [2, 3] and space(x.transpose(0, 2, 3, 1)) == [1, 2] and space(x[:, :, 0]) == []


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finetune") / "small.onnx"
    prune(DIGITS, Budget("macs", 0.15), data=CALIBRATION, output=path, plan=path.with_suffix(".json"), benchmark=False)
    return path


def top1(path: Path | onnx.ModelProto) -> float:
    with np.load(DIGITS.with_name("digits_test.npz")) as data:
        names = {v.name for v in onnx.load(DIGITS).graph.input}
        labels = next(data[n] for n in data.files if n not in names)
        feeds = {n: data[n] for n in data.files if n in names}
    proto = onnx.load(path) if isinstance(path, Path) else path
    return float((Session(Model(proto), threads=1).run(feeds)[0].argmax(1) == labels).mean())


def test_distillation_improves_a_pruned_net_and_repeats(pruned: Path, tmp_path: Path) -> None:
    runs = [
        finetune(pruned, DIGITS, data=CALIBRATION, steps=60, threads=1, output=tmp_path / f"{k}.onnx") for k in range(2)
    ]
    assert runs[0].is_improved and runs[0].trained.after < 0.8 * runs[0].trained.before
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    before, after = onnx.load(pruned), onnx.load(tmp_path / "0.onnx")
    for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True):
        assert (a.name, list(a.dims), a.data_type) == (b.name, list(b.dims), b.data_type)
    assert [n.SerializeToString() for n in before.graph.node if n.op_type != "Constant"] == [
        n.SerializeToString() for n in after.graph.node if n.op_type != "Constant"
    ]
    assert top1(tmp_path / "0.onnx") >= top1(pruned) - 0.02


def test_nothing_better_leaves_the_start(pruned: Path) -> None:
    """A learning rate that ruins the network: the start is written, byte for byte, and it is said."""
    result = finetune(pruned, DIGITS, data=CALIBRATION, steps=4, rate=50.0, threads=1)
    assert not result.is_improved and result.trained.best_step == 0
    assert result.model.SerializeToString() == onnx.load(pruned).SerializeToString()
    assert "unchanged" in dict(result.lines())["held-out"]


def test_a_run_goes_on_from_its_checkpoint(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.training import loop

    whole = finetune(pruned, DIGITS, data=CALIBRATION, steps=20, threads=1, patience=0)
    file = tmp_path / "state.npz"
    original = loop._step

    def broken(*arguments: Any) -> float:
        if arguments[-1] >= 0.6:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        finetune(pruned, DIGITS, data=CALIBRATION, steps=20, threads=1, patience=0, checkpoint=file)
    monkeypatch.setattr(loop, "_step", original)
    again = finetune(pruned, DIGITS, data=CALIBRATION, steps=20, threads=1, patience=0, checkpoint=file)
    assert again.model.SerializeToString() == whole.model.SerializeToString()
    with pytest.raises(BadInputError, match="another run"):
        finetune(pruned, DIGITS, data=CALIBRATION, steps=21, threads=1, patience=0, checkpoint=file)


def test_features_follow_the_plan(pruned: Path) -> None:
    plan = pruned.with_suffix(".json")
    result = finetune(pruned, DIGITS, data=CALIBRATION, steps=2, threads=1, features=3, plan=plan)
    assert len(result.features) == 3


def test_zeros_stay(pruned: Path) -> None:
    proto = onnx.load(pruned)
    network = Network(load(proto))
    key = max((k for k, w in network.weights.items() if w.is_matrix), key=lambda k: network.parameters[k].numel())
    with torch.no_grad():
        network.parameters[key][network.parameters[key].abs() < network.parameters[key].abs().median()] = 0
    sparse = network.export()
    tuned = finetune(sparse, DIGITS, data=CALIBRATION, steps=60, threads=1).model
    before, after = (Network(load(m)).parameters[key].detach() for m in (sparse, tuned))
    assert torch.equal(before == 0, after == 0) and not torch.equal(before, after)


def test_sparse_initializers_are_trained_and_stay_sparse() -> None:
    thin = sparsify(DIGITS, sparsity=0.8, store="sparse", benchmark=False).model
    assert len(thin.graph.sparse_initializer) > 5
    result = finetune(thin, DIGITS, data=CALIBRATION, steps=40, threads=1)
    before, after = (Network(load(m)).parameters for m in (thin, result.model))
    names = [t.values.name for t in thin.graph.sparse_initializer]
    assert [t.values.name for t in result.model.graph.sparse_initializer] == names
    for name in names:
        assert torch.equal(before[name] == 0, after[name] == 0) and not torch.equal(before[name], after[name])


def test_labels_alone_and_from_scratch(pruned: Path, tmp_path: Path) -> None:
    with np.load(CALIBRATION) as data:
        names = [v.name for v in onnx.load(DIGITS).graph.input]
        inputs = {n: data[n] for n in names}
    labels = Session(Model(onnx.load(DIGITS)), threads=1).run(inputs)[0].argmax(1)
    np.save(tmp_path / "labels.npy", labels)
    with_labels = finetune(pruned, data=CALIBRATION, labels=tmp_path / "labels.npy", steps=20, threads=1)
    assert with_labels.trained.after <= with_labels.trained.before
    scratch = finetune(
        pruned, data=CALIBRATION, labels=tmp_path / "labels.npy", steps=150, patience=0, threads=1, from_scratch=True
    )
    assert scratch.trained.before > 1.5 and scratch.trained.after < scratch.trained.before
    assert scratch.model.SerializeToString() != onnx.load(pruned).SerializeToString()


def test_labels_are_judged_at_the_best_sharpness() -> None:
    """A modest network that is right loses to none that is sure and right, and beats one that is sure and wrong."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    scores = np.eye(3, dtype=np.float32)[labels]
    wrong = scores.copy()
    wrong[:20] = np.roll(wrong[:20], 1, axis=1)
    objective = Objective((), Supervised("y", "labels", False, False), (), 1.0, 1.0, 0.0)
    judged = Judged(("y",), ("y",), {})
    right, modest, sure = (objective.held_out([], [[x]], judged, [labels]) for x in (4 * scores, 2 * scores, 4 * wrong))
    plain = float(
        Supervised("y", "labels", False, False)(torch.from_numpy(2 * scores), torch.from_numpy(labels)).mean()
    )
    assert right <= modest < plain / 4 and modest < sure / 10


def test_rounds_of_pruning_and_training(tmp_path: Path) -> None:
    assert ramp(0.5, 2) == [0.5 + 0.5 / 8, 0.5] and ramp(0.3, 4)[-1] == 0.3
    result = prune_during_training(
        DIGITS,
        Budget("macs", 0.4),
        data=CALIBRATION,
        rounds=2,
        steps=8,
        output=tmp_path / "o.onnx",
        training={"threads": 1},
    )
    before, after = result.counts["macs"]
    assert len(result.rounds) == 2 and after <= 0.4 * before and before == 6_104_320
    assert [o.name for o in onnx.load(tmp_path / "o.onnx").graph.output] == [
        o.name for o in onnx.load(DIGITS).graph.output
    ]


def test_an_output_may_be_a_scalar() -> None:
    proto = model(
        "(float[N,4] x) => (float y) { h = MatMul (x, w) t = Tanh (h) y = ReduceMean <keepdims = 0> (t) }", w=(4, 4)
    )
    data = [{"x": np.random.default_rng(k).standard_normal((2, 4)).astype(np.float32)} for k in range(4)]
    assert finetune(proto, proto, data=data, steps=2, threads=1).trained.steps > 0


def test_rounds_may_remove_layers() -> None:
    result = prune_during_training(
        DIGITS,
        Budget("macs", 0.7),
        data=CALIBRATION,
        rounds=1,
        steps=2,
        training={"threads": 1},
        depth="only",
        samples=16,
    )
    assert len(result.model.graph.node) < len(onnx.load(DIGITS).graph.node)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"teacher": None}, "nothing to learn from"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"rate": float("nan")}, "--rate must be above zero"),
        ({"label_weight": 2.0}, "--label-weight"),
        ({"label_weight": 0.5}, "share of --labels"),
        ({"plan": "p.json", "features": 0}, "--features N"),
        ({"teacher": None, "labels": "x"}, "give it, or leave them out"),
        ({"labels": "nosuch"}, "neither a file nor an array"),
        ({"from_scratch": True}, "needs --labels|give --labels"),
        ({"nonsense": 1}, "Unknown option 'nonsense'"),
        ({"plan": "nosuch.json"}, "cannot be read"),
    ],
)
def test_bad_options(pruned: Path, options: dict[str, Any], text: str) -> None:
    options = {"teacher": DIGITS, "data": CALIBRATION, "features": 1} | options
    with pytest.raises(BadInputError, match=text):
        finetune(pruned, options.pop("teacher"), **options)


def test_a_teacher_with_other_inputs_is_refused(pruned: Path) -> None:
    other = model("(float[N,2] other) => (float[N,2] y) { y = Relu (other) }")
    with pytest.raises(BadInputError, match="teacher's inputs are other"):
        finetune(pruned, other, data=CALIBRATION)


def test_labels_out_of_range_are_refused(pruned: Path, tmp_path: Path) -> None:
    with np.load(CALIBRATION) as data:
        count = len(data[data.files[0]])
    np.save(tmp_path / "labels.npy", np.full(count, 10))
    with pytest.raises(BadInputError, match="10 classes"):
        finetune(pruned, data=CALIBRATION, labels=tmp_path / "labels.npy", steps=1)


def test_command_line(pruned: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.onnx"
    call = [
        "finetune",
        str(pruned),
        "--teacher",
        str(DIGITS),
        "--data",
        str(CALIBRATION),
        "-o",
        str(out),
        "--threads",
        "1",
    ]
    found = CliRunner().invoke(main, [*call, "--steps", "3", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["trained"]["steps"] == 3
    assert out.exists()
    refused = CliRunner().invoke(main, [*call, "--steps", "0"])
    assert refused.exit_code == 2
    gradual = ["prune", str(DIGITS), "-o", str(tmp_path / "g.onnx"), "--macs", "0.5", "--during-training"]
    assert CliRunner().invoke(main, gradual).exit_code == 2
    assert (
        CliRunner().invoke(main, [*gradual, "--data", str(CALIBRATION), "--plan", str(tmp_path / "p")]).exit_code == 2
    )
    for unused in (["--then-quantize", "int8"], ["--metric", "cosine"]):
        found = CliRunner().invoke(main, [*gradual, "--data", str(CALIBRATION), "--steps", "4", *unused])
        assert found.exit_code == 2 and unused[0] in found.output
    for unused in (["--steps", "0"], ["--minutes", "-1"], ["--seed", "-1", "--steps", "4"]):
        found = CliRunner().invoke(main, [*gradual, "--data", str(CALIBRATION), *unused])
        assert found.exit_code == 2 and f"{unused[0]} must be" in found.output and unused[1] in found.output
    without = [x for x in gradual if x != "--during-training"]
    found = CliRunner().invoke(main, [*without, "--steps", "4"])
    assert found.exit_code == 2 and "--steps only goes with --during-training" in found.output
    assert not (tmp_path / "g.onnx").exists()


def test_without_pytorch_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from onnxprune.cli import main; main()"
    call = [
        "finetune",
        str(DIGITS),
        "--teacher",
        str(DIGITS),
        "--data",
        str(CALIBRATION),
        "-o",
        str(tmp_path / "o.onnx"),
    ]
    found = subprocess.run([sys.executable, "-c", code, *call], capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "onnxprune[finetune]" in found.stderr


def test_scalars_stay_scalars() -> None:
    """Made-up rank one would turn Unsqueeze's result into a matrix."""
    proto = model(
        """(float[N,4] x) => (float[N,4] y) <float two = {2.0}, int64[1] first = {0}> {
        t = Unsqueeze (two, first) u = Concat <axis = 0> (t, t, t, t) h = Mul (x, u) y = MatMul (h, w) }""",
        w=(4, 4),
    )
    assert checking.check(Network(load(proto)), {"x": np.ones((2, 4), np.float32)}) < 1e-5


def test_half_precision_is_computed_in_float32_and_written_back_as_it_was() -> None:
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float16)
    proto = model("(float16[N,4] x) => (float16[N,4] y) { y = MatMul (x, w) }", w=w)
    network = Network(load(proto))
    assert checking.check(network, {"x": np.ones((2, 4), np.float16)}) < 2e-3
    assert network.export().graph.initializer[0].data_type == TensorProto.FLOAT16


# ---------------------------------------------------------------- labels as people have them


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    return prune(DIGITS, Budget("macs", 0.15), data=CALIBRATION, benchmark=False).model


TRAINING = DIGITS.with_name("digits_train.npz")


def right(proto: onnx.ModelProto) -> float:
    with np.load(DIGITS.with_name("digits_test.npz")) as archive:
        session = Session(Model(proto))
        return float((session.run({"x": archive["x"]})[0].argmax(axis=1) == archive["labels"]).mean())


def test_labels_of_a_file_come_before_those_of_the_data(small: onnx.ModelProto, tmp_path: Path) -> None:
    """Every .npy is called labels, and so is the array beside the inputs; wrong ones show which were used."""
    with np.load(TRAINING) as archive:
        np.save(tmp_path / "wrong.npy", (archive["labels"] + 1) % 10)
        np.save(tmp_path / "right.npy", archive["labels"])
    made = {
        name: finetune(small, data=TRAINING, labels=tmp_path / f"{name}.npy", steps=60, rate=1e-2)
        for name in ("right", "wrong")
    }
    assert right(made["right"].model) > 0.85 > 0.5 > right(made["wrong"].model)


def test_an_input_is_no_label(small: onnx.ModelProto) -> None:
    with pytest.raises(BadInputError, match="'x' is an input"):
        finetune(small, DIGITS, data=TRAINING, labels="x", steps=2)


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_one_hot_labels_are_classes(small: onnx.ModelProto, tmp_path: Path, kind: Any) -> None:
    """Not values that the logits should be near."""
    with np.load(TRAINING) as archive:
        np.save(tmp_path / "hot.npy", np.eye(10, dtype=kind)[archive["labels"]])
    made = finetune(small, data=TRAINING, labels=tmp_path / "hot.npy", steps=60)
    assert right(made.model) >= right(small) - 0.01
    plain = finetune(small, data=TRAINING, labels="labels", steps=60)
    assert made.trained.after == pytest.approx(plain.trained.after, rel=1e-4), "the same loss"


def test_labels_that_are_no_numbers_are_refused(small: onnx.ModelProto, tmp_path: Path) -> None:
    with np.load(TRAINING) as archive:
        values = archive["labels"].astype(np.float32)
    values[7] = np.nan
    np.save(tmp_path / "nan.npy", values)
    with pytest.raises(BadInputError, match="NaN"):
        finetune(small, data=TRAINING, labels=tmp_path / "nan.npy", steps=2)


def test_a_score_of_the_users_is_told_as_it_is(small: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DIGITS.parent.parent)
    made = finetune(small, DIGITS, data=TRAINING, metric="tests.readme_metric:accuracy", steps=20)
    heading, text = made.lines()[-1]
    assert heading == "score" and 0.5 < float(text.split()[0].rstrip(":")) <= 1
    with pytest.raises(BadInputError, match="compares with the original, as the loss does"):
        finetune(small, DIGITS, data=TRAINING, metric="kl", steps=2)


def test_noise_of_half_precision_inputs_is_finite() -> None:
    x = {
        "x": np.full((4, 3, 64, 64), 8, np.float16)
        * np.sign(np.random.default_rng(0).standard_normal((4, 3, 64, 64))).astype(np.float16)
    }
    mixed = augmented(x, np.random.default_rng(0), Augmentation()).feeds["x"]
    assert mixed.dtype == np.float16 and np.isfinite(mixed).all()


def test_quantized_models_are_refused_before_they_are_cut() -> None:
    made = prune(DIGITS, Budget("macs", 0.7), data=CALIBRATION, then_quantize="int8", benchmark=False).model
    with pytest.raises(BadInputError, match="is quantized"):
        prune_during_training(made, Budget("macs", 0.5), data=CALIBRATION, steps=4)
    with pytest.raises(BadInputError, match="before quantizing"):
        finetune(made, DIGITS, data=CALIBRATION, steps=4)


# ---------------------------------------------------------------- speed


PADDED = """(float[N,3,9,9] x) => (float[N,4,a,b] y) <int64[1] four = {4}, int64[4] tail = {1, 2, 1, 2}, int64[2] two = {4, 2}, int64[1] end = {-1}> {
    lead = ConstantOfShape <value = int64[1] {0}> (four) tails = Concat <axis = 0> (lead, tail) table = Reshape (tails, two) flat = Reshape (table, end)
    p = Pad (x, SHAPE) h = Conv <kernel_shape = [3,3], strides = [2,2], pads = [0,1,0,1]> (p, w, b) y = Relu (h) }"""


@pytest.mark.parametrize(
    ("pads", "steps"),
    [
        ([0, 0, 1, 2, 0, 0, 1, 2], 2),
        ([0, 0, 1, 2, 0, 0, 2, 1], 3),
        ([0, 0, -1, 0, 0, 0, -1, 0], 3),
        ([0, 1, 1, 1, 0, 1, 1, 1], 3),
    ],
)
def test_what_constants_say_is_computed_once_and_convolutions_pad(pads: list[int], steps: int) -> None:
    """Alike on both sides, in space, by zeros and not less than none: then it is the convolution's; else it stays."""
    width = 3 + pads[1] + pads[5]
    text = PADDED.replace("SHAPE", "amounts").replace(
        "flat = Reshape (table, end)", "flat = Reshape (table, end) amounts = Add (flat, rest)"
    )
    rest = np.array(pads) - np.array([0, 0, 0, 0, 1, 2, 1, 2])
    network = Network(load(model(text, w=(4, width, 3, 3), b=(4,), rest=rest)))
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 9, 9)).astype(np.float32)}
    wanted = Session(network.program.model).run(x)[0]
    ran: list[str] = []
    run = network._run
    network._run = lambda step, values: (ran.append(step.op), run(step, values))[1]  # type: ignore[method-assign]
    assert np.allclose(network(x)["y"].detach(), wanted, atol=1e-5)
    assert len(ran) == steps and ("Pad" in ran) == (steps == 3)
    ran.clear()
    found = network(x, ["p", "table"])
    assert found["p"].shape[2] == 9 + pads[2] + pads[6] and found["table"].shape == (4, 2)
    assert np.allclose(found["y"].detach(), wanted, atol=1e-5) and "Pad" in ran


@pytest.mark.parametrize(
    "text", ["p, q = Split <axis = 0> (x) y = Conv (p, w)", "p = Pad (x, amounts, one) y = Conv (p, w)"]
)
def test_what_is_padded_by_ones_or_read_twice_stays(text: str) -> None:
    text = text.replace(
        "p, q = Split <axis = 0> (x) y = Conv (p, w)",
        "p = Pad (x, amounts) c = Conv (p, w) d = Relu (p) e = Conv (d, w) y = Add (c, e)",
    )
    proto = model(
        f"(float[N,3,5,5] x) => (float[N,4,a,b] y) <int64[8] amounts = {{0,0,1,1,0,0,1,1}}, float one = {{1.0}}> {{ {text} }}",
        w=(4, 3, 3, 3),
    )
    for node in proto.graph.node:
        if node.op_type == "Conv":
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", [3, 3]))
    network = Network(load(proto))
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)}
    assert np.allclose(network(x)["y"].detach(), Session(Model(proto)).run(x)[0], atol=1e-5)
    assert "Pad" in [s.op for s in network._short[0]]


def test_weights_are_not_folded() -> None:
    network = Network(load(FAMILIES["standardised weights"]()))
    assert {"BatchNormalization", "Reshape", "Conv"} <= {s.op for s in network._short[0]}


def test_bounds_are_numbers_and_the_gradient_one_pass() -> None:
    proto = model(
        "(float[N,4] x) => (float[N,4] y) <float low = {0.0}, float high = {6.0}> { h = MatMul (x, w) y = Clip (h, low, high) }",
        w=(4, 4),
    )
    found = Network(load(proto))({"x": np.ones((1, 4), np.float32)})["y"]
    assert "Hardtanh" in type(found.grad_fn).__name__


def test_the_teacher_shows_only_what_is_compared(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is shown is not fused with what follows: 2.5 times the time, where all are."""
    from onnxprune.api import finetuning

    run, shown = finetuning.Tuning.result, []

    def result(self: finetuning.Tuning) -> Any:
        assert self.teacher is not None
        shown.append(set(self.teacher.outputs))
        return run(self)

    monkeypatch.setattr(finetuning.Tuning, "result", result)
    told = finetune(pruned, DIGITS, data=CALIBRATION, steps=1, threads=1, features=2, plan=pruned.with_suffix(".json"))
    assert shown == [{"logits", *told.features}]
