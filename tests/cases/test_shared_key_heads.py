"""Queries, one key and one value head in one matrix (Falcon): parts of heads that lose different positions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import check, net

CONSTANTS = {
    "zero": np.array([0]),
    "two": np.array([2]),
    "three": np.array([3]),
    "half": np.array([4]),
    "end": np.array([2**63 - 1]),
    "one": np.array([1]),
    "minus1": np.array([-1]),
    "minus2": np.array([-2]),
    "first": np.array([[-2]]),
    "second": np.array([[-1]]),
    "sizes": np.array([4, 1, 1]),
    "halves": np.array([4, 4]),
    "split": np.array([0, 0, 6, 8]),
    "merged": np.array([0, 0, 32]),
}
# queries [N, 4, S, 8], key and value [N, 1, S, 8] from h [N, S, 6, 8]
PARTS = {
    "slices from the end": """
        q0 = Slice(h, zero, minus2, two, one)
        k0 = Slice(h, minus2, minus1, two)
        v0 = Slice(h, minus1, end, two)""",
    "one constant as start and axis": """
        q0 = Slice(h, zero, minus2, two, one)
        t = Transpose<perm=[2,0,1,3]>(h)
        kt0 = GatherND(t, first)
        k0 = Transpose<perm=[1,2,0,3]>(kt0)
        vt0 = GatherND(t, second)
        v0 = Transpose<perm=[1,2,0,3]>(vt0)""",
    "split": "q0, k0, v0 = Split<axis=2>(h, sizes)",
    "gather": """
        q0 = Slice(h, zero, minus2, minus2)
        k0 = Gather<axis=-2>(h, minus2)
        v0 = Gather<axis=2>(h, minus1)""",
}
SLICED = """
        {x}a = Slice({x}1, zero, half, three, one)
        {x}b = Slice({x}1, half, end, three, one)"""


def rotary(x: str, halves: str) -> str:
    return f"""{halves.format(x=x)}
        {x}n = Neg({x}b)
        {x}r = Concat<axis=-1>({x}n, {x}a)
        {x}c = Mul({x}1, cos)
        {x}s = Mul({x}r, sin)
        {x} = Add({x}c, {x}s)"""


def model(parts: str, halves: str = SLICED) -> str:
    return f"""g (float[N,5,16] x) => (float[N,5,16] y)
        <float[16,48] w, float[1,1,5,8] cos, float[1,1,5,8] sin, float[32,16] o> {{
        p = MatMul(x, w)
        h = Reshape(p, split)
        {parts}
        q1 = Transpose<perm=[0,2,1,3]>(q0)
        k1 = Transpose<perm=[0,2,1,3]>(k0)
        v = Transpose<perm=[0,2,1,3]>(v0)
        {rotary("q", halves)}
        {rotary("k", halves)}
        kt = Transpose<perm=[0,1,3,2]>(k)
        score = MatMul(q, kt)
        weights = Softmax<axis=-1>(score)
        mixed = MatMul(weights, v)
        back = Transpose<perm=[0,2,1,3]>(mixed)
        flat = Reshape(back, merged)
        y = MatMul(flat, o)
    }}"""


@pytest.mark.parametrize("halves", [SLICED, "{x}a, {x}b = Split<axis=-1>({x}1, halves)"], ids=["slices", "split"])
@pytest.mark.parametrize("name", PARTS)
def test_every_ratio(name: str, halves: str) -> None:
    """4 steps of two positions (a rotary pair of queries and key, any two of the value), and 3 of the 4 query heads."""
    text = model(PARTS[name], halves)
    used = {
        k: v for k, v in CONSTANTS.items() if k in text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    check(net(text, constants=used), units=[4], rows=[4], ratios=[k / 10 for k in range(3, 10)])
