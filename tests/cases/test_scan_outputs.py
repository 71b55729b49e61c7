"""What a body gives in each step of a Loop or Scan is stacked along a new axis: its own axes keep their units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracle import check, net

CONSTANTS: dict[str, Any] = {"zero": np.array(0), "go": np.array(True), "five": np.array(5)}


def model(text: str, opset: int = 17) -> Any:
    words = text.replace("(", " ").replace(",", " ").replace(")", " ").replace(">", " ").split()
    return net(text, opset=opset, constants={k: v for k, v in CONSTANTS.items() if k in words})


def test_rows_of_a_convolution() -> None:
    """12 channels before the loop, 20 inside."""
    text = """g (float[N,3,8,8] x) => (float[N,4] y)
        <float[12,3,3,3] w, float[20,12,3,3] u, float[20] b, float[20,4] v> {
        h = Conv<pads=[1,1,1,1]>(x, w)
        r = Relu(h)
        s = Shape(x)
        n = Gather(s, zero)
        rows = Loop(n, go) <body = step (int64 i, bool c) => (bool more, float[20] row) {
            one = Gather(r, i)
            image = Unsqueeze<axes=[0]>(one)
            conv = Conv<pads=[1,1,1,1]>(image, u, b)
            act = Relu(conv)
            mean = ReduceMean<axes=[0,2,3],keepdims=0>(act)
            row = Identity(mean)
            more = Identity(c)
        }>
        y = MatMul(rows, v)
    }"""
    check(model(text, opset=12), units=[20, 12])


def test_several_scan_outputs_beside_a_carried_value() -> None:
    """The sum is carried and keeps its 7; matrices and rows do not."""
    text = """g (float[5,6] x) => (float[5,2] y, float[5,5,2] z, float[7] total)
        <float[6,8] w, float[8,9] u, float[6,7] t, float[7] start, float[9,2] v, float[8,2] q> {
        h = MatMul(x, w)
        total, rows, squares = Loop(five, go, start) <body = step (int64 i, bool c, float[7] sum) =>
                (bool more, float[7] next, float[9] row, float[5,8] square) {
            one = Gather(h, i)
            a = MatMul(one, u)
            row = Relu(a)
            square = Mul(h, one)
            part = Gather(x, i)
            b = MatMul(part, t)
            next = Add(sum, b)
            more = Identity(c)
        }>
        y = MatMul(rows, v)
        z = MatMul(squares, q)
    }"""
    check(model(text), units=[9, 8])


@pytest.mark.parametrize(
    ("attributes", "back"),
    [
        ("", ""),
        (", scan_output_axes=[1]", "Transpose<perm=[1,0]>"),
        (", scan_input_directions=[1]", ""),
    ],
    ids=["rows", "columns", "backwards"],
)
def test_scan(attributes: str, back: str) -> None:
    """The features of what is scanned, and those of what each step gives."""
    text = f"""g (float[5,6] x) => (float[5,2] y, float[7] last)
        <float[6,8] w, float[8,9] u, float[8,7] t, float[7] start, float[9,2] v> {{
        h = MatMul(x, w)
        last, rows = Scan<num_scan_inputs=1{attributes}, body = step (float[7] state, float[8] one) =>
                (float[7] next, float[9] row) {{
            a = MatMul(one, u)
            row = Relu(a)
            b = MatMul(one, t)
            next = Add(state, b)
        }}>(start, h)
        r = {back or "Identity"}(rows)
        y = MatMul(r, v)
    }}"""
    check(model(text), units=[9, 8])


def test_heads_in_each_step() -> None:
    """4 positions of each of 3 heads; the same without a loop."""
    text = """g (float[5,6] x) => (float[5,5,2] y) <float[6,12] w, float[6,12] u, float[12,2] v> {
        rows = Loop(five, go) <body = step (int64 i, bool c) => (bool more, float[3,5,4] row) {
            q0 = MatMul(x, w)
            q1 = Reshape(q0, split)
            one = Gather(x, i)
            k0 = MatMul(one, u)
            k1 = Reshape(k0, line)
            m = Mul(q1, k1)
            row = Transpose<perm=[1,0,2]>(m)
            more = Identity(c)
        }>
        t = Transpose<perm=[0,2,1,3]>(rows)
        f = Reshape(t, flat)
        y = MatMul(f, v)
    }"""
    shapes = {"split": np.array([5, 3, 4]), "line": np.array([1, 3, 4]), "flat": np.array([5, 5, 12])}
    check(net(text, constants=shapes | {k: CONSTANTS[k] for k in ("five", "go")}), units=[4])
