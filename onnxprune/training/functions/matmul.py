"""Matrix products."""

from __future__ import annotations

import torch

from onnxprune.training.functions.base import EVERY, Call, Function, Table, Tensor
from onnxprune.training.functions.conv import activated


def gemm(c: Call) -> Tensor:
    a = c[0].transpose(0, 1) if c.attr("transA", 0) else c[0]
    b = c[1].transpose(0, 1) if c.attr("transB", 0) else c[1]
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    if c.get(2) is not None and alpha == beta == 1 and a.is_floating_point():
        return torch.addmm(c[2], a, b)
    y = torch.matmul(a, b) * alpha if alpha != 1 else torch.matmul(a, b)
    return y if c.get(2) is None else y + beta * c[2]


def einsum(c: Call) -> Tensor:
    return torch.einsum(c.attr("equation"), *c.inputs)


def fused_matmul(c: Call) -> Tensor:
    a = c[0].transpose(-1, -2) if c.attr("transA", 0) else c[0]
    b = c[1].transpose(-1, -2) if c.attr("transB", 0) else c[1]
    return torch.matmul(a, b) * c.attr("alpha", 1.0)


FUNCTIONS: Table = {
    "MatMul": Function(lambda c: torch.matmul(c[0], c[1]), trains=(0, 1), decays=(0, 1)),
    "Gemm": Function(gemm, trains=(0, 1, 2), decays=(0, 1)),
    "Einsum": Function(einsum, trains=EVERY, decays=EVERY),
    "com.microsoft::FusedMatMul": Function(fused_matmul, trains=(0, 1), decays=(0, 1)),
    "com.microsoft::FusedGemm": Function(lambda c: activated(c, gemm(c)), trains=(0, 1, 2), decays=(0, 1)),
}
