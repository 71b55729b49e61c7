"""LSTM, GRU, RNN: hidden units leave gates, recurrences, states and outputs together."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.ops.base import CostContext
from onnxprune.ops.recurrent import recurrent_macs
from tests.ops.harness import Case, check, model, node, weights, why

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
H, INNER = 8, 5


def constants(op: str, directions: int) -> dict[str, np.ndarray]:
    g = GATES[op]
    return weights(
        3,
        E=(3, INNER),
        W=(directions, g * H, INNER),
        R=(directions, g * H, H),
        B=(directions, 2 * g * H),
        P=(directions, 3 * H),
        h0=(directions, 2, H),
        c0=(directions, 2, H),
        O=(directions * H, 4),
    )


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("states", ["none", "constant", "zeros", "computed"])
def test_hidden(op: str, opset: int, directions: int, states: str) -> None:
    """Two groups: the inputs (issued by the embedding E), and H hidden steps, each one unit per direction."""
    c = constants(op, directions)
    c["back"] = np.array([0, 0, -1])
    inputs = "e W R B"
    nodes = [node("MatMul", "x E", "e")]
    if states == "constant":
        inputs += " _ h0" + (" c0" if op == "LSTM" else "")
    if states == "zeros":  # as exporters write it
        c["size"] = np.array([directions, 2, H])
        nodes.append(node("ConstantOfShape", "size", "zeros"))
        inputs += " _ zeros" + (" zeros" if op == "LSTM" else "")
    expected = {"MatMul 'e'": INNER, f"{op} 'h'": H}
    if states == "computed":  # initial state from a weight: its columns go with the hidden units
        c |= weights(5, S=(3, directions * H))
        c["first"] = np.array(0)
        nodes += [
            node("Gather", "x first", "x0", axis=0),  # [2, 3]
            node("MatMul", "x0 S", "s"),
            node("Reshape", "s split", "s3"),
            node("Transpose", "s3", "state", perm=[1, 0, 2]),
        ]
        c["split"] = np.array([0, directions, H])
        inputs += " _ state" + (" state" if op == "LSTM" else "")
        expected = {"MatMul 'e'": INNER, "MatMul 's'": H}
    kwargs = {"direction": "bidirectional" if directions == 2 else "forward"}
    nodes += [
        node(op, inputs, "h", hidden_size=H, **kwargs),
        node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t back", "q"),
        node("MatMul", "q O", "y"),
    ]
    check(Case(model(nodes, {"x": ["T", 2, 3]}, constants=c, opset=max(opset, 9)), expected))


@pytest.mark.parametrize("directions", [1, 2])
def test_peepholes_lengths_and_last_states(directions: int) -> None:
    """Only Y_h and Y_c are read; sequences of different lengths; P has one row per direction."""
    c = constants("LSTM", directions)
    c["lengths"] = np.array([4, 2], np.int32)
    kwargs = {"direction": "bidirectional" if directions == 2 else "reverse"}
    c["back"] = np.array([0, -1])
    nodes = [
        node("MatMul", "x E", "e"),
        node("LSTM", "e W R B lengths h0 c0 P", "_ h c", hidden_size=H, input_forget=1, clip=3.0, **kwargs),
        node("Add", "h c", "s"),
        node("Transpose", "s", "t", perm=[1, 0, 2]),
        node("Reshape", "t back", "q"),
        node("MatMul", "q O", "y"),
    ]
    nodes[1].name = "h"
    check(Case(model(nodes, {"x": [4, 2, 3]}, constants=c, opset=14), {"MatMul 'e'": INNER, "LSTM 'h'": H}))


@pytest.mark.parametrize("linear", [0, 1])
def test_gru_reset(linear: int) -> None:
    """The reset gate multiplies the state before or after R."""
    c = constants("GRU", 1)
    c["zero"] = np.array([1])
    nodes = [
        node("MatMul", "x E", "e"),
        node("GRU", "e W R B", "h", hidden_size=H, linear_before_reset=linear),
        node("Squeeze", "h zero", "q"),
        node("MatMul", "q O", "y"),
    ]
    check(Case(model(nodes, {"x": ["T", 2, 3]}, constants=c), {"MatMul 'e'": INNER, "GRU 'h'": H}))


def test_stacked() -> None:
    """The hidden units of the first layer are the inputs of the second."""
    c = constants("LSTM", 2)
    c |= weights(9, W2=(1, 4 * 6, 2 * H), R2=(1, 4 * 6, 6), O2=(6, 3))
    c["back"], c["one"] = np.array([0, 0, -1]), np.array([1])
    nodes = [
        node("LSTM", "x W R B", "h", hidden_size=H, direction="bidirectional"),
        node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t back", "q"),
        node("LSTM", "q W2 R2", "g", hidden_size=6),
        node("Squeeze", "g one", "z"),
        node("MatMul", "z O2", "y"),
    ]
    check(Case(model(nodes, {"x": ["T", 2, INNER]}, constants=c), {"LSTM 'h'": H, "LSTM 'g'": 6}))


def test_weights_behind_dequantization() -> None:
    """W and R come out of DequantizeLinear with one scale per gate row; the rows still go with the hidden units."""
    c = constants("LSTM", 1)
    rng = np.random.default_rng(1)
    for name, n in (("W", INNER), ("R", H)):
        c[name + "q"] = rng.integers(-50, 50, (1, 4 * H, n)).astype(np.int8)
        c[name + "s"] = rng.random(4 * H).astype(np.float32) / 50
    c["one"] = np.array([1])
    nodes = [
        node("MatMul", "x E", "e"),
        node("DequantizeLinear", "Wq Ws", "Wd", axis=1),
        node("DequantizeLinear", "Rq Rs", "Rd", axis=1),
        node("LSTM", "e Wd Rd B", "h", hidden_size=H),
        node("Squeeze", "h one", "q"),
        node("MatMul", "q O", "y"),
    ]
    del c["W"], c["R"]
    analysis = check(
        Case(model(nodes, {"x": ["T", 2, 3]}, constants=c), {"MatMul 'e'": INNER, "DequantizeLinear 'Wd'": H})
    )
    assert sum(g.units == H for g in analysis.groups) == 1


def test_states_that_are_graph_inputs_keep_the_hidden_size() -> None:
    c = constants("LSTM", 1)
    c["one"] = np.array([1])
    nodes = [
        node("MatMul", "x E", "e"),
        node("LSTM", "e W R B _ s s", "h", hidden_size=H),
        node("Squeeze", "h one", "q"),
        node("MatMul", "q O", "y"),
    ]
    analysis = check(Case(model(nodes, {"x": ["T", 2, 3], "s": [1, 2, H]}, constants=c), {"MatMul 'e'": INNER}))
    assert "combines it with input 5 ('s')" in why(analysis)


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantize_lstm(per_channel: bool) -> None:
    """com.microsoft::DynamicQuantizeLSTM: transposed 8-bit weights, one scale per direction or per gate row."""
    c = constants("LSTM", 1)
    rng = np.random.default_rng(2)
    for name, n in (("W", INNER), ("R", H)):
        c[name] = rng.integers(0, 255, (1, n, 4 * H)).astype(np.uint8)
        c[name + "s"] = (rng.random((1, 4 * H) if per_channel else (1,)) / 99).astype(np.float32)
        c[name + "z"] = np.full((1, 4 * H) if per_channel else (1,), 120, np.uint8)
    c["one"] = np.array([1])
    nodes = [
        node("MatMul", "x E", "e"),
        node("DynamicQuantizeLSTM", "e W R B _ _ _ _ Ws Wz Rs Rz", "h", domain="com.microsoft", hidden_size=H),
        node("Squeeze", "h one", "q"),
        node("MatMul", "q O", "y"),
    ]
    case = Case(
        model(nodes, {"x": ["T", 2, 3]}, constants=c, domains={"com.microsoft": 1}),
        {"MatMul 'e'": INNER, "DynamicQuantizeLSTM 'h'": H},
    )
    check(case)


def test_macs() -> None:
    """T B D G H (I + H)"""
    shapes = ((7, 2, INNER), (2, 4 * H, INNER), (2, 4 * H, H))
    assert recurrent_macs(CostContext({}, shapes, ((7, 2, 2, H),))) == 7 * 2 * 2 * 4 * H * (INNER + H)
