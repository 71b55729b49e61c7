"""Tensors that are put into sequences and taken out again (unbind, chunk, stack): as Split and Concat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracle import Unit, check, net, pins

CONSTANTS: dict[str, Any] = {
    "i0": np.array(0),
    "i1": np.array(1),
    "i2": np.array(2),
    "last": np.array(-1),
    "half": np.array(8),
    "uneven": np.array([4, 12]),
    "chunk": np.array(6),
    "packed": np.array([0, 0, 3, 4, 6]),
    "merged": np.array([0, 0, 24]),
    "axis": np.array([0]),
}


def run(text: str, units: list[Unit], rows: list[Unit] | None = None) -> Any:
    words = text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    return check(net(text, constants={k: v for k, v in CONSTANTS.items() if k in words}), units, rows)


def gated(split: str, at: tuple[str, str] = ("i0", "last"), size: int = 8) -> str:
    return f"""g (float[N,5,6] x) => (float[N,5,3] y) <float[6,{2 * size}] w, float[{size},3] v> {{
        h = MatMul(x, w)
        s = {split}
        a = SequenceAt(s, {at[0]})
        b = SequenceAt(s, {at[1]})
        g = Sigmoid(b)
        m = Mul(a, g)
        y = MatMul(m, v)
    }}"""


@pytest.mark.parametrize("split", ["SplitToSequence<axis=-1>(h, half)", "SplitToSequence<axis=2>(h, both)"])
def test_halves(split: str) -> None:
    model = gated(split)
    check(net(model, constants={k: v for k, v in (CONSTANTS | {"both": np.array([8, 8])}).items() if k in model}), [8])


def attention(split: str, after: str = "") -> str:
    return f"""g (float[N,5,6] x) => (float[N,5,3] y) <float[6,72] w, float[24,3] v> {{
        h = MatMul(x, w)
        t0 = Reshape(h, packed)
        t = Transpose<perm=[2,0,3,1,4]>(t0)
        s = {split}
        q = SequenceAt(s, i0)
        k = SequenceAt(s, i1)
        u = SequenceAt(s, i2)
        {after}
        kt = Transpose<perm=[0,1,3,2]>(k{"1" if after else ""})
        score = MatMul(q{"1" if after else ""}, kt)
        p = Softmax<axis=-1>(score)
        o = MatMul(p, u{"1" if after else ""})
        ot = Transpose<perm=[0,2,1,3]>(o)
        flat = Reshape(ot, merged)
        y = MatMul(flat, v)
    }}"""


SQUEEZED = "\n".join(f"{x}1 = Squeeze({x}, axis)" for x in "qku")


@pytest.mark.parametrize(
    ("split", "after"),
    [
        ("SplitToSequence<axis=0,keepdims=0>(t)", ""),
        ("SplitToSequence<axis=0>(t)", SQUEEZED),
        ("SplitToSequence<axis=0>(t, i1)", SQUEEZED),
    ],
    ids=["unbind", "one position each", "length 1"],
)
def test_packed_heads(split: str, after: str) -> None:
    """4 heads of 6 positions."""
    run(attention(split, after), units=[6], rows=[4])


def test_uneven_parts() -> None:
    run(
        """g (float[N,6] x) => (float[N,3] y, float[N,3] z) <float[6,16] w, float[4,3] v, float[12,3] u> {
        h = MatMul(x, w)
        s = SplitToSequence<axis=1>(h, uneven)
        a = SequenceAt(s, i0)
        b = SequenceAt(s, i1)
        y = MatMul(a, v)
        z = MatMul(b, u)
    }""",
        units=[16],
    )


def test_the_last_part_is_shorter_and_one_is_not_read() -> None:
    run(
        """g (float[N,6] x) => (float[N,3] y, float[N,3] z) <float[6,16] w, float[6,3] v, float[4,3] u> {
        h = MatMul(x, w)
        s = SplitToSequence<axis=1>(h, chunk)
        a = SequenceAt(s, i0)
        b = SequenceAt(s, i2)
        y = MatMul(a, v)
        z = MatMul(b, u)
    }""",
        units=[16],
    )


@pytest.mark.parametrize("join", ["ConcatFromSequence<axis=1>(s)", "ConcatFromSequence<axis=-1>(s)"])
def test_joined(join: str) -> None:
    run(
        f"""g (float[N,6] x) => (float[N,3] y) <float[6,8] w, float[6,5] u, float[13,3] v> {{
        a = MatMul(x, w)
        b = MatMul(x, u)
        s = SequenceConstruct(a, b)
        c = {join}
        y = MatMul(c, v)
    }}""",
        units=[8, 5],
    )


def test_stacked() -> None:
    """Along a new axis, the tensors' own axes are tied."""
    run(
        """g (float[N,6] x) => (float[N,3] y) <float[6,8] w, float[6,8] u, float[8,3] v> {
        a = MatMul(x, w)
        b = MatMul(x, u)
        s = SequenceConstruct(a, b)
        c = ConcatFromSequence<axis=1,new_axis=1>(s)
        r = ReduceMax<axes=[1],keepdims=0>(c)
        y = MatMul(r, v)
    }""",
        units=[8],
    )


def test_inserted_and_taken_away() -> None:
    run(
        """g (float[N,6] x) => (float[N,3] y, int64 n) <float[6,8] w, float[6,5] u, float[6,4] t, float[9,3] v> {
        a = MatMul(x, w)
        b = MatMul(x, u)
        c = MatMul(x, t)
        s0 = SequenceEmpty()
        s1 = SequenceInsert(s0, a)
        s2 = SequenceInsert(s1, b)
        s3 = SequenceInsert(s2, c, i0)
        n = SequenceLength(s3)
        s4 = SequenceErase(s3, i1)
        d = ConcatFromSequence<axis=1>(s4)
        y = MatMul(d, v)
    }""",
        units=[8, 5, 4],
    )


def test_a_position_from_data_keeps_everything() -> None:
    """The length of an input decides."""
    text = """g (float[N,6] x) => (float[N,3] y) <float[6,8] w, float[6,8] u, float[6,8] t, float[8,3] v> {
        a = MatMul(x, w)
        b = MatMul(x, u)
        c = MatMul(x, t)
        s = SequenceConstruct(a, b, c)
        n = Size(x)
        m = Div(n, six)
        i = Mod(m, three)
        d = SequenceAt(s, i)
        y = MatMul(d, v)
    }"""
    model = net(text, constants={"six": np.array(6), "three": np.array(3)})
    assert check(model, []) is None
    assert "takes a tensor at a position that is computed from data" in pins(model)


def test_a_sequence_that_leaves_the_graph() -> None:
    text = """g (float[N,6] x) => (float[N,3] y, seq(float[]) s) <float[6,8] w, float[8,8] u, float[8,3] v> {
        a = MatMul(x, w)
        b = MatMul(a, u)
        s = SequenceConstruct(b, b)
        y = MatMul(b, v)
    }"""
    model = net(text)
    assert "graph output 's' keeps its shape" in pins(model)


def test_a_sequence_for_an_operator_that_takes_it_whole() -> None:
    text = """g (float[N,6] x) => (float[N,3] y) <float[6,8] w, float[8,8] u, float[16,3] v> {
        a = MatMul(x, w)
        b = MatMul(a, u)
        s = SequenceConstruct(b, b)
        o = Optional(s)
        p = OptionalGetElement(o)
        c = ConcatFromSequence<axis=1>(p)
        y = MatMul(c, v)
    }"""
    model = net(text, opset=18)
    check(model, [8])  # of a; those of b stay
    assert "takes a sequence of tensors as a whole" in pins(model)
