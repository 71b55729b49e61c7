"""A made-up device, as a program for `--runner 'python tests/devices/blocks.py {model}'`: it reads the model and prints milliseconds.

Every Conv, MatMul and Gemm costs by whole blocks of 32 channels, in and out, and everything else nothing. So 33 channels cost what 64 do,
which is not how ONNX Runtime's kernels behave. The same model always takes the same time.
"""

from __future__ import annotations

import math
import sys

import onnx
from onnx import NodeProto, helper, shape_inference

BLOCK = 32
PER_BLOCK = 1e-5  # milliseconds of one block of inputs times one of outputs at one position and tap
PER_NODE = 1e-3


def blocks(channels: int) -> int:
    return math.ceil(channels / BLOCK)


def cost(node: NodeProto, shapes: dict[str, list[int]]) -> float:
    """Milliseconds of a node."""
    if node.op_type not in ("Conv", "MatMul", "Gemm"):
        return 0.0
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight, out = shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":
        groups = given.get("group", 1)
        each = blocks(weight[1]) * blocks(weight[0] // groups) * groups
        return PER_NODE + PER_BLOCK * each * math.prod(weight[2:]) * math.prod(out[2:]) * out[0]
    inputs, outputs = weight[-2:] if not given.get("transB") else weight[::-1]
    return PER_NODE + PER_BLOCK * blocks(inputs) * blocks(outputs) * math.prod(out[:-1])


def milliseconds(path: str) -> float:
    """Of a run of the model, all of whose sizes must be known."""
    graph = shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    known = {t.name: list(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = list(node.attribute[0].t.dims)
    for value in (*graph.input, *graph.output, *graph.value_info):
        known.setdefault(value.name, [d.dim_value for d in value.type.tensor_type.shape.dim])
    return sum(cost(node, known) for node in graph.node)


if __name__ == "__main__":
    print("made-up device, blocks of", BLOCK)
    print(f"time: {milliseconds(sys.argv[1]):.6f} ms")
