"""What each step of a loop appends to a sequence (bags of embeddings, rows of a batch), and values that differ from step to step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracle import check, net, pins

CONSTANTS: dict[str, Any] = {
    "zero": np.array(0),
    "axis": np.array([0]),
    "go": np.array(True),
    "two": np.array(2),
    "four": np.array(4),
    "three": np.array(3),
    "one": np.array([1]),
    "starts": np.array([0, 2, 4]),
    "ends": np.array([2, 4, 6]),
}


def model(text: str) -> Any:
    words = text.replace("(", " ").replace(",", " ").replace(")", " ").replace(">", " ").split()
    return net(text, constants={k: v for k, v in CONSTANTS.items() if k in words})


def rows(inside: str, join: str = "ConcatFromSequence<axis=0>(all)", start: str = "SequenceEmpty()") -> str:
    """16 features of every row, 12 of what each step makes of it."""
    return f"""g (float[N,8] x) => (float[N,5] y) <float[8,16] v, float[16,12] w, float[12,5] s> {{
        h = MatMul(x, v)
        r = Relu(h)
        sh = Shape(x)
        n = Gather(sh, zero)
        e = {start}
        all = Loop(n, go, e) <body = step (int64 i, bool c, seq(float[]) q) => (bool more, seq(float[]) next)
                <float[16] single, float[1,16] row, float[1,12] m, float[1,12] a> {{
            single = Gather(r, i)
            row = Unsqueeze(single, axis)
            m = MatMul(row, w)
            a = Relu(m)
            {inside}
            more = Identity(c)
        }}>
        z = {join}
        y = MatMul(z, s)
    }}"""


def test_rows_are_appended() -> None:
    check(model(rows("next = SequenceInsert(q, a)")), units=[16, 12])


def test_rows_are_stacked_along_a_new_axis() -> None:
    join = """ConcatFromSequence<axis=0,new_axis=1>(all)
        y0 = Squeeze(z1, one)"""
    text = rows("next = SequenceInsert(q, a)", join).replace("z = Concat", "z1 = Concat").replace("y0 =", "z =")
    check(model(text), units=[16, 12])


@pytest.mark.parametrize(
    "inside",
    ["next = SequenceInsert(q, a, zero)", "k = SequenceLength(q)\n next = SequenceInsert(q, a)"],
    ids=["in front", "its length is read"],
)
def test_what_else_is_done_with_it_keeps_what_is_in_it(inside: str) -> None:
    found = model(rows(inside))
    check(found, units=[16])
    assert "SequenceInsert 'all.body//next' works on a sequence that a loop carries" in pins(found)


def test_bags_of_embeddings() -> None:
    """3 bags of 2: the 24 columns of the table; an empty bag would be the constant of the other branch, which is cut alike."""
    text = """g (int64[6] x) => (float[3,4] y) <float[60,24] e, float[24,48] w, float[48,4] v> {
        g = Gather(e, x)
        empty = SequenceEmpty()
        last, bags = Loop(three, go, axis, empty) <body = step (int64 i, bool c, int64[1] k, seq(float[]) q) =>
                (bool more, int64[1] k2, seq(float[]) next) <float[1,24] bag> {
            k2 = Add(k, one)
            from = Gather(starts, k)
            to = Gather(ends, k)
            none = Equal(from, to)
            is = Squeeze(none)
            bag = If(is) <then_branch = none () => (float[1,24] zeros) <float[1,24] zeros> {},
                else_branch = some () => (float[1,24] mean) <float[2,24] part> {
                    part = Slice(g, from, to)
                    mean = ReduceMean<axes=[0]>(part)
                }>
            next = SequenceInsert(q, bag)
            more = Identity(c)
        }>
        all = ConcatFromSequence<axis=0>(bags)
        a = MatMul(all, w)
        r = Relu(a)
        y = MatMul(r, v)
    }"""
    check(model(text), units=[48, 24])


def test_what_differs_from_step_to_step_is_no_constant() -> None:
    """Three features after the other: step 0, which is observed, takes the first three, the others do not."""
    text = """g (float[N,6] x) => (float[N,5] y) <float[6,12] w, float[3,5] t, float[6,5] z> {
        h = MatMul(x, w)
        r = Relu(h)
        start = MatMul(x, z)
        last = Loop(four, go, start) <body = step (int64 i, bool c, float[N,5] sum) => (bool more, float[N,5] next) {
            j = Mul(i, three)
            from = Reshape(j, one)
            to = Add(from, three)
            part = Slice(r, from, to, one)
            m = MatMul(part, t)
            next = Add(sum, m)
            more = Identity(c)
        }>
        y = Identity(last)
    }"""
    found = model(text)
    assert check(found, []) is None
    assert "Slice 'last.body//part' cuts at a position that is computed from data" in pins(found)
