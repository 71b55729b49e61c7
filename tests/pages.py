"""Reports to make pages of: small, with names that mean harm, and of two thousand nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import Budget
from onnxprune.report.report import Report
from tests.oracle import net
from tests.test_plan import RESIDUAL

HARM = (
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    '"\' onmouseover=window.harmed=1 x="',
    "\u202egpj.exe\u202c",
    "层名/Ünïcode/🦙",
    "{{ 7 * 7 }}{% raw %}",
    "long" * 50_000,
    "]]><!--",
    "\u2028\u2029\x01\x7f",
)


def small(**options: Any) -> Report:
    """Of a residual network."""
    return onnxprune.prune(net(RESIDUAL), Budget("ratio", 0.5), round_to=1, benchmark=False, **options).report


def renamed(model: onnx.ModelProto, names: tuple[str, ...] = HARM) -> onnx.ModelProto:
    """The model with these names for its nodes, and in those of its tensors."""
    other: dict[str, str] = {}
    for k, node in enumerate(model.graph.node):
        node.name = f"{names[k % len(names)]}{k}"
        for o in node.output:
            other[o] = f"{names[(k + 3) % len(names)]}{o}"
    for t in model.graph.initializer:
        other[t.name] = f"{names[len(other) % len(names)]}{t.name}"
        t.name = other[t.name]
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [other.get(x, x) for x in values]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = other.get(value.name, value.name)
    return model


def deep(blocks: int) -> onnx.ModelProto:
    """Five nodes in each block: Conv, Relu, Conv, Add, Relu."""
    draw = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for k in range(blocks):
        for part in "ab":
            w = 0.1 * draw.standard_normal((8, 8, 1, 1)).astype(np.float32)
            weights.append(numpy_helper.from_array(w, f"w{k}{part}"))
        nodes += [
            helper.make_node("Conv", [x, f"w{k}a"], [f"c{k}"], f"block{k}/conv1"),
            helper.make_node("Relu", [f"c{k}"], [f"r{k}"], f"block{k}/relu1"),
            helper.make_node("Conv", [f"r{k}", f"w{k}b"], [f"d{k}"], f"block{k}/conv2"),
            helper.make_node("Add", [x, f"d{k}"], [f"s{k}"], f"block{k}/add"),
            helper.make_node("Relu", [f"s{k}"], [f"y{k}"], f"block{k}/relu2"),
        ]
        x = f"y{k}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 2, 2]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
