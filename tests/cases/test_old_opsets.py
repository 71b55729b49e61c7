"""Files from before IR version 4 and opset 9: initializers are inputs, Constant nodes hold floats, and there is no Where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from onnxprune import Budget
from onnxprune.api.training_data import check_same_interface
from onnxprune.model.interface import resized
from tests import oracle
from tests.oracle import net

SLOPES = """g (float[1,3,8,8] x) => (float[1,4] y)
    <float[12,3,3,3] a, float[12] slope, float[12,12,3,3] b, float[12] other, float[12,4] h> {
    p = Conv<pads=[1,1,1,1]>(x, a)
    s = Reshape(slope, SHAPE)
    q = PRelu(p, s)
    c = Conv<pads=[1,1,1,1]>(q, b)
    o = Reshape(other, SHAPE2)
    r = PRelu(c, o)
    m = GlobalAveragePool(r)
    f = Flatten(m)
    y = MatMul(f, h)
}"""
COMPUTED = """g (float[N,T,12] x) => (float[N,T,4] y) <float[12,24] a, float[24,10] b, float[10,4] h> {
    p = MatMul(x, a)
    s = Shape(p)
    n = Gather(s, both)
    t = Concat<axis=0>(n, split)
    r = Reshape(p, t)
    o = Transpose<perm=[0,1,3,2]>(r)
    w = Relu(o)
    back = Transpose<perm=[0,1,3,2]>(w)
    z = Reshape(back, s)
    q = MatMul(z, b)
    d = Gather(s, last)
    f = Cast<to=1>(d)
    root = Sqrt(f)
    i = Div(q, root)
    y = MatMul(i, h)
}"""
BRANCHES = """g (float[2,12] x, bool go) => (float[2,4] y) <float[12,24] a, float[24,4] h> {
    p = MatMul(x, a)
    z = If (go) <
        then_branch = one () => (float[2,24] k) { u = Reshape(p, t) v = Relu(u) k = Reshape(v, w) },
        else_branch = two () => (float[2,24] l) { u2 = Reshape(p, t) l = Reshape(u2, w) }
    >
    y = MatMul(z, h)
}"""
ints = lambda *n: np.array(n, np.int64)  # noqa: E731
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "own": (SLOPES.replace("SHAPE2", "k").replace("SHAPE", "t"), {"t": ints(12, 1, 1), "k": ints(12, 1, 1)}),
    "shared": (SLOPES.replace("SHAPE2", "t").replace("SHAPE", "t"), {"t": ints(12, 1, 1)}),
    "computed": (COMPUTED, {"both": ints(0, 1), "split": ints(4, 6), "last": np.array(2)}),
    "branches": (BRANCHES, {"t": ints(2, 4, 6), "w": ints(2, 24)}),
}


def old(name: str) -> onnx.ModelProto:
    """The case at opset 8, IR version 3."""
    text, constants = CASES[name]
    model = net(text, opset=8, constants=constants)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_as_valid_as_the_original(name: str) -> None:
    model = old(name)
    for ratio in (0.3, 0.6):
        result = oracle.prune(model, ratio, seed=int(10 * ratio))
        assert any(g.removed for g in result.plan.groups)
        onnx.checker.check_model(result.model, full_check=True)
        made = {t.name for t in result.model.graph.initializer}
        assert made <= {v.name for v in result.model.graph.input}, "initializers are inputs"
        inner = [g for g in oracle.graphs(result.model.graph) if g is not result.model.graph]
        assert not any(g.input or g.initializer for g in inner), "branches have no inputs"
        assert result.model.ir_version == 3 and result.model.opset_import == model.opset_import
        reference = oracle.session(oracle.masked(model, result.plan, oracle.feeds(model, 0)))
        for seed, sizes in enumerate([(2, 3), (1, 4), (5, 2)]):
            given = oracle.feeds(model, seed, sizes)
            got = oracle.session(result.model).run(None, given)
            assert oracle.deviation(reference.run(None, given), got) <= oracle.TOLERANCE


def test_a_shape_of_one_node_keeps_its_name() -> None:
    model = old("own")
    result = oracle.prune(model, 0.5)
    assert [v.name for v in result.model.graph.input] == [v.name for v in model.graph.input]
    assert [n.op_type for n in result.model.graph.node] == [n.op_type for n in model.graph.node]


def test_layers_of_old_files_can_be_bypassed() -> None:
    model = old("shared")
    data = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    result = onnxprune.prune(model, Budget("macs", 0.5), depth="auto", round_to=1, benchmark=False, seed=1)
    onnx.checker.check_model(result.model, full_check=True)
    assert oracle.session(result.model).run(None, data)[0].shape == (1, 4)


def test_weights_that_are_listed_as_inputs_do_not_count_as_inputs(tmp_path: Path) -> None:
    """Their sizes differ from the original's: the models still run on the same data."""
    model = old("own")
    onnx.save(model, tmp_path / "before.onnx")
    onnx.save(oracle.prune(model, 0.5).model, tmp_path / "after.onnx")
    assert resized(model, onnx.load(tmp_path / "after.onnx")) == ()
    check_same_interface(onnx.load(tmp_path / "after.onnx"), model)
    assert onnxprune.bench([tmp_path / "before.onnx", tmp_path / "after.onnx"], runs=3)
