"""Grouped convolutions whose kernel is computed: the groups of the kernel are those of its input."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import check, net

DOMAINS = ', "com.microsoft" : 1'
KERNELS = {
    "constant": ("float[24,4,3,3] k", ""),
    "Cast": ("float16[24,4,3,3] u", "k = Cast<to=1>(u)"),
    "Mul": ("float[24,4,3,3] u, float[24,1,1,1] t", "k = Mul(u, t)"),
    "Transpose": ("float[4,24,3,3] u", "k = Transpose<perm=[1,0,2,3]>(u)"),
    "DequantizeLinear": ("int8[24,4,3,3] u, float[24] var", "k = DequantizeLinear<axis=0>(u, var)"),
    "weight norm": (
        "float[24,4,3,3] u, float[24,1,1,1] t",
        """n = ReduceL2<axes=[1,2,3]>(u)
        d = Div(u, n)
        k = Mul(d, t)""",
    ),
    "fake quantization": (
        "float[24,4,3,3] u, float[24] var, int8[24] z",
        """q = QuantizeLinear<axis=0>(u, var, z)
        k = DequantizeLinear<axis=0>(q, var, z)""",
    ),
}
TRANSPOSED = {
    "constant": ("float[16,6,3,3] k, float[24] b", ""),
    "Cast": ("float16[16,6,3,3] u, float[24] b", "k = Cast<to=1>(u)"),
    "Mul": ("float[16,6,3,3] u, float[1,6,1,1] t, float[24] b", "k = Mul(u, t)"),
    "with a bias": (
        "int8[16,6,3,3] u, float[6] var, float16[24] a",
        """k = DequantizeLinear<axis=1>(u, var)
        b = Cast<to=1>(a)""",
    ),
}


def network(weights: str, kernel: str, conv: str) -> str:
    return f"""g (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[16,3,3,3] w, {weights}, float[4,24,1,1] v> {{
        h = Conv<pads=[1,1,1,1]>(x, w)
        r = Relu(h)
        {kernel}
        c = {conv}
        s = Relu(c)
        y = Conv(s, v)
    }}"""


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    """4 inputs and 6 outputs in each of 4 groups, as where the kernel is constant."""
    model = net(network(*KERNELS[name], "Conv<group=4,pads=[1,1,1,1]>(r, k)"))
    check(model, units=[6, 4], rows=[4], ratios=(0.3, 0.5, 0.7, 0.8))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed(name: str) -> None:
    model = net(network(*TRANSPOSED[name], "ConvTranspose<group=4,pads=[1,1,1,1]>(r, k, b)"))
    check(model, units=[6, 4], rows=[4], ratios=(0.3, 0.5, 0.7, 0.8))


@pytest.mark.parametrize(
    ("more", "conv"),
    [
        ("o = Conv<pads=[1,1,1,1]>(x, shift)", "DeformConv<group=4,pads=[1,1,1,1]>(r, k, o)"),
        ("", 'com.microsoft.FusedConv<group=4,pads=[1,1,1,1],activation="Relu">(r, k)'),
    ],
    ids=["DeformConv", "FusedConv"],
)
def test_other_grouped_operators(more: str, conv: str) -> None:
    text = network("float16[24,4,3,3] u, float[18,3,3,3] shift", f"k = Cast<to=1>(u)\n{more}", conv)
    check(net(text, opset=19, domains=DOMAINS), units=[6, 4], rows=[4], ratios=(0.3, 0.5, 0.8))


def test_quantized_at_run_time() -> None:
    weights = "float[24,4,3,3] u, float step, uint8 z"
    kernel = "q = QuantizeLinear(r, step, z)\n        k = QuantizeLinear(u, step, z)"
    conv = "ConvInteger<group=4,pads=[1,1,1,1]>(q, k, z, z)\n        f = Cast<to=1>(c)"
    text = network(weights, kernel, conv).replace("Relu(c)", "Relu(f)")
    model = net(text, constants={"step": np.array(0.03, np.float32), "z": np.array(128, np.uint8)})
    check(model, units=[6, 4], rows=[4], ratios=(0.3, 0.5, 0.8))


def test_one_kernel_of_two_convolutions() -> None:
    model = net("""g (float[N,3,8,8] x) => (float[N,4,8,8] y)
        <float[16,3,3,3] w, float16[16,4,3,3] u, float[4,16,1,1] v> {
        h = Conv<pads=[1,1,1,1]>(x, w)
        k = Cast<to=1>(u)
        a = Conv<group=4,pads=[1,1,1,1]>(h, k)
        r = Relu(a)
        b = Conv<group=4,pads=[1,1,1,1]>(r, k)
        s = Add(h, b)
        y = Conv(s, v)
    }""")
    check(model, units=[4], rows=[4])
