"""Models made on the spot, with random weights: a ResNet-50, and a residual chain of any length."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and weights of a convolutional network."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"{op}_{len(self.nodes)}", **attributes))
        return out

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        scale = np.sqrt(2.0 / max(1, int(np.prod(shape[1:]))))
        self.weights.append(numpy_helper.from_array((self.rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> str:
        w, b = self.weight(outputs, inputs, kernel, kernel), self.weight(outputs)
        pad = kernel // 2
        y = self.add("Conv", [x, w, b], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        return self.add("Relu", [y]) if relu else y

    def model(self, output: str, size: int, classes: int) -> ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size, size])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", classes])
        graph = helper.make_graph(self.nodes, "made", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def head(self, x: str, channels: int, classes: int) -> str:
        pooled = self.add("GlobalAveragePool", [x])
        flat = self.add("Flatten", [pooled], axis=1)
        return self.add("Gemm", [flat, self.weight(classes, channels), self.weight(classes)], transB=1)


def resnet50() -> ModelProto:
    """He et al. 2016, batch normalization folded: 53 convolutions, 25.6 M parameters, 224 x 224."""
    b = Builder()
    x = b.conv("x", 3, 64, 7, 2)
    x = b.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(blocks):
            step = stride if k == 0 else 1
            y = b.conv(x, channels, width, 1)
            y = b.conv(y, width, width, 3, step)
            y = b.conv(y, width, 4 * width, 1, relu=False)
            skip = b.conv(x, channels, 4 * width, 1, step, relu=False) if k == 0 else x
            x = b.add("Relu", [b.add("Add", [y, skip])])
            channels = 4 * width
    return b.model(b.head(x, channels, 1000), 224, 1000)


def chain(nodes: int, width: int = 16) -> ModelProto:
    """A residual chain of about `nodes` nodes on 8 x 8 images, a new stage (new widths) every ten blocks."""
    b = Builder()
    x = b.conv("x", 3, width, 3)
    channels, count = width, 0
    while len(b.nodes) + 3 < nodes:
        if count % 10 == 9:
            x = b.conv(x, channels, width, 3)
            channels = width
        y = b.conv(x, channels, 2 * width, 1)
        y = b.conv(y, 2 * width, channels, 3, relu=False)
        x = b.add("Relu", [b.add("Add", [b.add("Mul", [y, b.weight(1, channels, 1, 1)]), x])])
        count += 1
    return b.model(b.head(x, channels, 10), 8, 10)
