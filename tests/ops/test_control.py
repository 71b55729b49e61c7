"""Subgraphs: weights inside are pruned; branches are pruned alike; carried values stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.ops.harness import Array, Case, Node, check, model, node, weights, why


def branch(name: str, nodes: list[Node], output: str, constants: dict[str, Array] | None = None) -> onnx.GraphProto:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    inits = [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()]
    return helper.make_graph(nodes, name, [], [info], inits)


@pytest.mark.parametrize("opset", [11, 13, 16, 21])
@pytest.mark.parametrize("condition", [True, False])
def test_branches_of_one_width(opset: int, condition: bool) -> None:
    """Both branches make the 8 hidden positions, which go in both; each reads x from outside."""
    then = branch("then", [node("MatMul", "x A", "a")], "a", weights(1, A=(4, 8)))
    other = branch("else", [node("MatMul", "x B", "b0"), node("Relu", "b0", "b")], "b", weights(2, B=(4, 8)))
    nodes = [
        node("If", "c", "h", then_branch=then, else_branch=other),
        node("MatMul", "h V", "y"),
    ]
    c = weights(3, V=(8, 3)) | {"c": np.array(condition)}
    check(Case(model(nodes, {"x": [2, 5, 4]}, constants=c, opset=opset), {"MatMul 'a'": 8}))


def test_network_inside_a_branch() -> None:
    """Two layers inside: the width between them is 8 in one branch and 6 in the other."""
    then = branch("then", [node("MatMul", "x A", "a"), node("MatMul", "a C", "o")], "o", weights(1, A=(4, 8), C=(8, 3)))
    other = branch(
        "else", [node("MatMul", "x B", "b"), node("MatMul", "b D", "p")], "p", weights(2, B=(4, 6), D=(6, 3))
    )
    nodes = [node("If", "c", "h", then_branch=then, else_branch=other), node("Identity", "h", "y")]
    proto = model(nodes, {"x": [2, 5, 4]}, constants={"c": np.array(True)})
    check(Case(proto, {"MatMul 'a'": 8, "MatMul 'b'": 6}))


def test_captured_activation() -> None:
    """A branch reads the pruned activation from outside."""
    then = branch("then", [node("Relu", "h", "a")], "a")
    other = branch(
        "else", [node("MatMul", "h D", "p"), node("MatMul", "p F", "q")], "q", weights(2, D=(8, 6), F=(6, 8))
    )
    nodes = [
        node("MatMul", "x W", "h"),
        node("If", "c", "g", then_branch=then, else_branch=other),
        node("MatMul", "g V", "y"),
    ]
    c = weights(3, W=(4, 8), V=(8, 3)) | {"c": np.array(False)}
    check(Case(model(nodes, {"x": [2, 5, 4]}, constants=c), {"MatMul 'h'": 8, "MatMul 'p'": 6}))


def test_branches_of_two_widths_stay() -> None:
    then = branch("then", [node("MatMul", "x A", "a")], "a", weights(1, A=(4, 8)))
    other = branch("else", [node("MatMul", "x B", "b")], "b", weights(2, B=(4, 6)))
    nodes = [
        node("If", "c", "h", then_branch=then, else_branch=other),
        node("ReduceSum", "h axis", "y", keepdims=0),
    ]
    proto = model(nodes, {"x": [2, 5, 4]}, constants={"c": np.array(True), "axis": np.array([-1])})
    assert "different shapes" in why(check(Case(proto, {})))


@pytest.mark.parametrize("opset", [11, 13, 16, 21])
def test_loop_body(opset: int) -> None:
    """Carried values keep their 4 positions; the 8 hidden ones inside the body can go."""
    body = helper.make_graph(
        [
            node("MatMul", "s A", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r C", "s2"),
            node("Identity", "c", "c2"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s2", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(v, n) for n, v in weights(1, A=(4, 8), C=(8, 4)).items()],
    )
    nodes = [
        node("MatMul", "x W", "h"),
        node("Loop", "n go h", "g", body=body),
        node("MatMul", "g V", "y"),
    ]
    c = weights(3, W=(3, 4), V=(4, 3)) | {"n": np.array(2), "go": np.array(True)}
    analysis = check(Case(model(nodes, {"x": [2, 5, 3]}, constants=c, opset=opset), {"MatMul 'a'": 8}))
    assert "from step to step" in why(analysis)


@pytest.mark.parametrize("opset", [9, 11, 16, 21])
def test_scan_body(opset: int) -> None:
    body = helper.make_graph(
        [
            node("Add", "s t", "u"),
            node("MatMul", "u A", "a"),
            node("Tanh", "a", "r"),
            node("MatMul", "r C", "s2"),
            node("Identity", "s2", "o"),
        ],
        "body",
        [
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [2, 4]),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 4]),
        ],
        [
            helper.make_tensor_value_info("s2", TensorProto.FLOAT, [2, 4]),
            helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 4]),
        ],
        [numpy_helper.from_array(v, n) for n, v in weights(1, A=(4, 8), C=(8, 4)).items()],
    )
    nodes = [
        node("Scan", "z x", "last all", body=body, num_scan_inputs=1),
        node("MatMul", "all V", "y"),
    ]
    c = weights(3, V=(4, 3)) | {"z": np.zeros((2, 4), np.float32)}
    check(Case(model(nodes, {"x": [5, 2, 4]}, constants=c, opset=opset), {"MatMul 'a'": 8}))
