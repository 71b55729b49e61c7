"""Convolutions: channels, groups, depthwise, transposed."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.ops.base import CostContext
from onnxprune.ops.conv import conv_macs, conv_transpose_macs
from tests.ops.harness import Case, check, image, model, node, weights, why


@pytest.mark.parametrize("opset", [1, 11, 22])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_conv(opset: int, bias: bool, dims: int) -> None:
    k = (3,) * dims
    c = weights(1, W=(8, 3, *k), b=(8,), U=(6, 8, *k), V=(4, 6, *k))
    nodes = [
        node("Conv", "x W b" if bias else "x W", "h"),
        node("Relu", "h", "r"),
        node("Conv", "r U", "u", pads=[1] * 2 * dims),
        node("Conv", "u V", "y", strides=[2] * dims),
    ]
    proto = model(nodes, {"x": ["B", 3, *[7] * dims]}, constants=c, opset=max(opset, 7))
    check(Case(proto, {"Conv 'h'": 8, "Conv 'u'": 6}))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int) -> None:
    """A channel goes with its own filter; with two filters each, the 8 inputs are rows of the 16 outputs."""
    c = weights(2, D=(8 * multiplier, 1, 3, 3), d=(8 * multiplier,))
    proto = image([node("Conv", "h D d", "g", group=8)], c, out=8 * multiplier)
    expected = {"Conv 'h'": 8} if multiplier == 1 else {"Conv 'h' rows": 8, "Conv 'g'": 2}
    check(Case(proto, expected))


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped(groups: int) -> None:
    """8 inputs, 16 outputs in groups: equal counts leave each group, or whole groups go."""
    c = weights(3, D=(16, 8 // groups, 3, 3))
    proto = image([node("Conv", "h D", "g", group=groups)], c, out=16)
    check(Case(proto, {"Conv 'h'": 8 // groups, "Conv 'g'": 16 // groups, "Conv 'h' rows": groups}))


def test_one_channel_is_not_depthwise() -> None:
    c = weights(4, W=(8, 1, 3, 3), V=(4, 8, 1, 1))
    nodes = [node("Conv", "x W", "h"), node("Conv", "h V", "y")]
    check(Case(model(nodes, {"x": [2, 1, 6, 6]}, constants=c), {"Conv 'h'": 8}))


@pytest.mark.parametrize("opset", [1, 11, 22])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_conv_transpose(opset: int, groups: int) -> None:
    """W is [I, O/g, ..]. In 8 groups of 1 input and 2 outputs, rows are the 8 inputs."""
    c = weights(5, D=(8, 16 // groups, 2, 2), d=(16,))
    proto = image([node("ConvTranspose", "h D d", "g", group=groups, strides=[2, 2])], c, out=16, opset=max(opset, 7))
    expected = {
        1: {"Conv 'h'": 8, "ConvTranspose 'g'": 16},
        2: {"Conv 'h'": 4, "ConvTranspose 'g'": 8, "Conv 'h' rows": 2},
        8: {"Conv 'h' rows": 8, "ConvTranspose 'g'": 2},
    }[groups]
    check(Case(proto, expected))


def test_computed_kernel_keeps_its_space() -> None:
    """A kernel that a hypernetwork computes: its channels are those of the layer that makes it."""
    c = weights(6, K=(4, 8 * 3 * 9)) | {"s": np.array([8, 3, 3, 3])} | weights(7, V=(4, 8, 1, 1))
    nodes = [
        node("Gemm", "k K", "r"),
        node("Reshape", "r s", "w"),
        node("Conv", "x w", "h"),
        node("Conv", "h V", "y"),
    ]
    # the box [8, 3, 3, 3] of the computed kernel: space and inputs stay, so every output channel goes with all its 27 entries
    analysis = check(Case(model(nodes, {"x": [2, 3, 6, 6], "k": [1, 4]}, constants=c), {}))
    assert "slides this axis" in why(analysis)


def test_weights_behind_identity_and_transpose() -> None:
    c = weights(8, W=(3, 8, 3, 3)) | weights(9, V=(4, 8, 1, 1))
    nodes = [
        node("Transpose", "W", "t", perm=[1, 0, 2, 3]),
        node("Identity", "t", "w"),
        node("Conv", "x w", "h"),
        node("Identity", "V", "v"),
        node("Conv", "h v", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 3, 6, 6]}, constants=c), {"Transpose 't'": 8}))


def test_shared_weight_is_cut_per_use() -> None:
    """Exporters share equal initializers: both layers use W, with different units."""
    c = weights(10, W=(8, 8, 3, 3), A=(8, 3, 1, 1), V=(4, 8, 1, 1))
    nodes = [
        node("Conv", "x A", "h"),
        node("Conv", "h W", "u"),
        node("Conv", "u W", "v"),
        node("Conv", "v V", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 3, 8, 8]}, constants=c), {"Conv 'h'": 8, "Conv 'u'": 8, "Conv 'v'": 8}))


def test_residual() -> None:
    """Stem and block output are one group; the block's inside another."""
    c = weights(11, A=(6, 8, 3, 3), B=(8, 6, 3, 3))
    between = [
        node("Conv", "h A", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("Conv", "r B", "b", pads=[1, 1, 1, 1]),
        node("Add", "b h", "g"),
    ]
    check(Case(image(between, c), {"Conv 'h'": 8, "Conv 'a'": 6}))


def test_fused_conv() -> None:
    c = weights(12, A=(8, 8, 3, 3), b=(8,))
    between = [
        node("FusedConv", "h A b h", "g", domain="com.microsoft", activation="Relu", pads=[1, 1, 1, 1]),
    ]
    check(Case(image(between, c, domains={"com.microsoft": 1}), {"Conv 'h'": 8}))


@pytest.mark.parametrize("groups", [1, 2])
def test_deform_conv(groups: int) -> None:
    """Offsets move the kernel for all channels alike, and stay themselves."""
    c = weights(13, A=(6, 8 // groups, 3, 3), b=(6,), F=(18, 3, 1, 1))
    between = [
        node("Conv", "x F", "o"),
        node("DeformConv", "h A o b", "g", pads=[1, 1, 1, 1], group=groups),
    ]
    units = {"Conv 'h'": 8, "DeformConv 'g'": 6}
    if groups == 2:
        units = {"Conv 'h'": 4, "DeformConv 'g'": 3, "Conv 'h' rows": 2}
    analysis = check(Case(image(between, c, opset=19, out=6), units))
    assert "moves its kernel" in why(analysis)


def test_macs() -> None:
    """N O H W (I/g) kh kw; transposed: N I H W (O/g) kh kw."""
    assert conv_macs(CostContext({}, ((2, 8, 6, 6), (16, 4, 3, 3)), ((2, 16, 6, 6),))) == 2 * 16 * 36 * 4 * 9
    assert conv_transpose_macs(CostContext({}, ((2, 8, 6, 6), (8, 4, 2, 2)), ((2, 4, 12, 12),))) == 2 * 8 * 36 * 4 * 4
