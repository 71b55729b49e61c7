"""A device that exists nowhere: its kernels work in whole blocks of channels, and the same model always takes the same time.

Convolutions and matrix products cost by blocks of inputs and outputs; every node costs a little, and every element that it makes. So 33
channels cost what 64 do in blocks of 32, which is not how ONNX Runtime's kernels behave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, shape_inference

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.model.loaded import Model

MACS, ELEMENTS, NODE, RUN = 1e-6, 1e-7, 1e-4, 1e-3  # milliseconds


class Device:
    """A `Runner`. block: channels. opened: how many models were opened. spread: times differ by so much, evenly, to and fro."""

    warms_up = True

    def __init__(self, block: int = 32, version: str = "1", spread: float = 0.0) -> None:
        self.block, self.version, self.spread = block, version, spread
        self.opened = 0

    @property
    def name(self) -> str:
        return f"made-up device with blocks of {self.block}"

    @property
    def key(self) -> dict[str, str]:
        return {"engine": "made-up", "version": self.version, "block": str(self.block)}

    def open(self, model: Model, feeds: Feeds, what: str) -> Opened:
        self.opened += 1
        return Opened(self.milliseconds(model.proto, feeds), self.spread)

    def milliseconds(self, proto: onnx.ModelProto, feeds: Feeds) -> float:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        for value in copy.graph.input:
            if value.name in feeds:
                kind = helper.np_dtype_to_tensor_dtype(feeds[value.name].dtype)
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, feeds[value.name].shape))
        del copy.graph.value_info[:]
        for output in copy.graph.output:
            output.type.tensor_type.ClearField("shape")
        graph = shape_inference.infer_shapes(copy, data_prop=True).graph
        known = {t.name: tuple(t.dims) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                known[node.output[0]] = tuple(node.attribute[0].t.dims)
        for value in (*graph.input, *graph.output, *graph.value_info):
            known.setdefault(value.name, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
        return RUN + sum(self.cost(node, known) for node in graph.node if node.op_type != "Constant")

    def blocks(self, channels: int) -> int:
        return math.ceil(channels / self.block) * self.block

    def cost(self, node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> float:
        out = shapes.get(node.output[0], ())
        small = NODE + ELEMENTS * math.prod(out)
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            return small
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        weight = shapes[node.input[1]]
        if node.op_type == "Conv":
            groups = given.get("group", 1)
            each = self.blocks(weight[1]) * self.blocks(weight[0] // groups) * groups
            return small + MACS * each * math.prod(weight[2:]) * math.prod(out[2:]) * out[0]
        inputs, outputs = weight[-2:] if not given.get("transB") else weight[::-1]
        return small + MACS * self.blocks(inputs) * self.blocks(outputs) * math.prod(out[:-1])


class Opened:
    def __init__(self, ms: float, spread: float) -> None:
        self.ms, self.spread, self.turn = ms, spread, 0

    def time(self, runs: int) -> Sequence[float]:
        self.turn += 1
        return [self.ms * (1 + self.spread * (self.turn % 3 - 1))] * runs

    def run(self) -> Sequence[Any] | None:
        return None

    def close(self) -> None:
        pass


class Refusing(Device):
    """A device whose engine knows no operator of these kinds."""

    def __init__(self, *unknown: str) -> None:
        super().__init__()
        self.unknown = unknown

    def open(self, model: Model, feeds: Feeds, what: str) -> Opened:
        for node in model.proto.graph.node:
            if node.op_type in self.unknown and what == "a piece of the model":
                raise BadInputError(f"The made-up engine does not know {node.op_type}.")
        return super().open(model, feeds, what)


class Layouts(Device):
    """A device whose models, but not single layers, pay for tensors between two convolutions whose channels fill no blocks of 8.

    price: milliseconds of an element of such a tensor.
    """

    warms_up = False

    def __init__(self, price: float) -> None:
        super().__init__(block=1)
        self.price = price

    def milliseconds(self, proto: onnx.ModelProto, feeds: Feeds) -> float:
        layers = [n for n in proto.graph.node if n.op_type == "Conv"]
        weights = {t.name: t.dims for t in proto.graph.initializer}
        odd = [n for n in layers if weights[n.input[1]][0] % 8]
        return super().milliseconds(proto, feeds) + (len(layers) > 1) * self.price * len(odd)


class Starting(Device):
    """A device on which a convolution takes the time that it takes to start it, whatever its width, and nothing else takes any."""

    def __init__(self) -> None:
        super().__init__(block=1)

    def cost(self, node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> float:
        return 0.1 * (node.op_type == "Conv") + 1e-3 * super().cost(node, shapes)


def random_feeds(**shapes: tuple[int, ...]) -> Feeds:
    return {k: np.random.default_rng(0).normal(size=v).astype(np.float32) for k, v in shapes.items()}
