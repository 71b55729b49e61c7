"""Heads merged with a batch of any size: head h sits at b * H + h for every sample b."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import check, net, pins

CONSTANTS = {
    "heads": np.array([0, 0, 4, 8]),
    "merged": np.array([0, 0, 32]),
    "any": np.array([-1]),
    "width": np.array([8]),
    "four": np.array([4]),
    "i0": np.array([0]),
    "i1": np.array([1]),
    "i2": np.array([2]),
    "five": np.array([-1, 5, 8]),
    "back": np.array([-1, 4, 5, 8]),
    "scale": np.array(0.3, np.float32),
}
SPLIT = """
        {x}p = MatMul(x, w{x})
        {x}r = Reshape({x}p, heads)
        {x}h = Transpose<perm=[0,2,1,3]>({x}r)"""
END = """
        ot = Transpose<perm=[0,2,1,3]>(o)
        flat = Reshape(ot, merged)
        y = MatMul(flat, v)"""
SIZES = """
        s = Shape(kh)
        batch = Gather(s, i0)
        length = Gather(s, i2)
        three = Concat<axis=0>(any, length, width)"""
KEY = f"""{SIZES}
        k3 = Reshape(kh, three)
        kt3 = Transpose<perm=[0,2,1]>(k3)
        turned = Concat<axis=0>(batch, four, width, length)
        kt = Reshape(kt3, turned)
        a = MatMul(qh, kt)
        m = Mul(a, scale)
        p = Softmax<axis=-1>(m)
        o = MatMul(p, uh){END}"""


def batched(three: str, more: str = "", key: str = "k3", back: str = "again") -> str:
    """Products of three axes, as torch.bmm has them."""
    return f"""{SIZES}
        {three}
        {more}
        kt = Transpose<perm=[0,2,1]>({key})
        a = MatMul(q3, kt)
        m = Mul(a, scale)
        p = Softmax<axis=-1>(m)
        o3 = MatMul(p, u3)
        again = Concat<axis=0>(batch, four, length, width)
        o = Reshape(o3, {back}){END}"""


THREE = "\n".join(f"{x}3 = Reshape({x}h, three)" for x in "qku")


def model(body: str, length: str = "S") -> object:
    text = f"""g (float[B,{length},10] x) => (float[B,{length},6] y)
        <float[10,32] wq, float[10,32] wk, float[10,32] wu, float[32,6] v> {{
        {"".join(SPLIT.format(x=x) for x in "qku")}
        {body}
    }}"""
    words = text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    return net(text, constants={k: v for k, v in CONSTANTS.items() if k in words})


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (KEY, "S"),
        (batched(THREE), "S"),
        (batched(THREE, "k4 = Exp(k3)", "k4"), "S"),
        (batched(THREE.replace("three", "five"), back="back"), "5"),
    ],
    ids=["keys alone", "products of three axes", "with what makes ones of zeros", "a length that is fixed"],
)
def test_heads(body: str, length: str) -> None:
    """3 of 4 heads, and 8 positions each of queries with keys, and of values."""
    check(model(body, length), units=[8, 8], rows=[4], ratios=(0.3, 0.5, 0.8))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            batched(
                """all = Mul(batch, four)
        named = Concat<axis=0>(all, length, width)
        """
                + THREE.replace("three", "named")
            ),
            "makes them part of axis 0",
        ),
        (
            batched(
                THREE,
                """s3 = Shape(k3)
        all = Gather(s3, i0)
        ones = ConstantOfShape(s3)
        k4 = Add(k3, ones)""",
                "k4",
            ),
            "has no removable index for these rows",
        ),
        (batched(THREE, "s3 = Identity(three)\n        k4 = Slice(k3, i0, length, i1)", "k4"), "has them in axis 0"),
    ],
    ids=["the target names the size", "the size is read", "a rule that may name it"],
)
def test_where_the_size_is_named_heads_stay(body: str, reason: str) -> None:
    found = model(body)
    check(found, units=[8, 8])  # type: ignore[arg-type]
    assert reason in pins(found)  # type: ignore[arg-type]
