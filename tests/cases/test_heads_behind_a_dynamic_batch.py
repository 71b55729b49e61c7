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
        (
            batched(
                f"all = Mul(batch, four)\nnamed = Concat<axis=0>(all, length, width)\n{THREE.replace('three', 'named')}"
            ),
            "S",
        ),
        (batched(THREE, "s3 = Shape(k3)\nones = ConstantOfShape(s3)\nk4 = Add(k3, ones)", "k4"), "S"),
    ],
    ids=[
        "keys alone",
        "products of three axes",
        "with what makes ones of zeros",
        "a length that is fixed",
        "the target names the size",
        "a constant of that size",
    ],
)
def test_heads(body: str, length: str) -> None:
    """3 of 4 heads, and 8 positions each of queries with keys, and of values."""
    check(model(body, length), units=[8, 8], rows=[4], ratios=(0.3, 0.5, 0.8))  # type: ignore[arg-type]


def test_where_a_rule_may_name_the_size_heads_stay() -> None:
    found = model(batched(THREE, "s3 = Identity(three)\nk4 = Slice(k3, i0, length, i1)", "k4"))
    check(found, units=[8, 8])  # type: ignore[arg-type]
    assert "has them in axis 0" in pins(found)  # type: ignore[arg-type]


INDEX = """
        s3 = Shape(k3)
        lead = Gather(s3, i0)
        all = Concat<axis=0>(lead, length, length)
        from = Range(zero, cut, one)
        across = Unsqueeze(from, i0)
        down = Unsqueeze(from, i1)
        apart = Sub(across, down)
        far = Abs(apart)
        near = Min(far, three_)"""
PICKED = {
    "elements that are read": "index = Expand(near, all)\nmore = GatherElements<axis=2>(scores, index)",
    "by an index that is tiled": """index_ = Unsqueeze(near, i0)
        times = Concat<axis=0>(lead, i1, i1)
        index = Tile(index_, times)
        more = GatherElements<axis=2>(scores, index)""",
    "elements that are written": 'index = Expand(near, all)\nmore = ScatterElements<axis=2,reduction="add">(scores, index, scores)',
    "a condition": "at = Equal(near, i1_)\nindex = Expand(at, all)\nmore = Where(index, scores, nothing)",
    "a constant of that size": "index = ConstantOfShape(all)\nmore = Add(scores, index)",
    "all elements in a row between": """index = Expand(near, all)
        flat_ = Reshape(index, any)
        again_ = Reshape(flat_, all)
        more = GatherElements<axis=2>(scores, again_)""",
}


def relative(more: str, first: bool) -> str:
    """Scores that elements of them are added to, picked by distance (as DeBERTa does): the index is the same for all heads.

    first: it is expanded before any heads are there.
    """
    index, heads = f"{INDEX}\n{more}".split("more = ")
    if first:
        index = index.replace("s3 = Shape(k3)", "").replace("lead = Gather(s3, i0)", "lead = Mul(batch_, four)")
    sizes = """
        sx = Shape(x)
        batch_ = Gather(sx, i0)
        length = Gather(sx, i1)
        cut = Squeeze(length, i0)
        three = Concat<axis=0>(any, length, width)
        again = Concat<axis=0>(batch_, four, length, width)"""
    parts = "".join(SPLIT.format(x=x) for x in "qku")
    return f"""{sizes}{index if first else ""}
        {parts}
        {THREE}
        kt = Transpose<perm=[0,2,1]>(k3)
        scores = MatMul(q3, kt){"" if first else index}
        more = {heads}
        both = Add(scores, more)
        p = Softmax<axis=-1>(both)
        o3 = MatMul(p, u3)
        o = Reshape(o3, again){END}"""


@pytest.mark.parametrize("first", [False, True], ids=["after the heads", "before"])
@pytest.mark.parametrize("how", PICKED)
def test_what_is_the_same_for_all_heads(how: str, first: bool) -> None:
    body = relative(PICKED[how], first)
    text = f"""g (float[B,S,10] x) => (float[B,S,6] y)
        <float[10,32] wq, float[10,32] wk, float[10,32] wu, float[32,6] v> {{
        {body}
    }}"""
    more = {"zero": np.array(0), "one": np.array(1), "three_": np.array(1), "nothing": np.array(0, np.float32)}
    constants = CONSTANTS | more | {"i1_": np.array(1)}
    words = text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    check(net(text, opset=18, constants={k: v for k, v in constants.items() if k in words}), units=[8, 8], rows=[4])
