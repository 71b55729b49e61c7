"""Elements read and written by an index that is the same for all features (graph networks, top tokens): features pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracle import check, net

CONSTANTS: dict[str, Any] = {
    "one": np.array([1]),
    "last": np.array([2]),
    "wide": np.array([1, 1, 8]),
    "repeats": np.array([1, 8]),
    "grown": np.array([5, 8]),
    "rows": np.array([[0], [3], [3], [1], [2]]),
    "table": np.repeat([[0], [3], [3], [1], [2]], 8, axis=1),
    "distinct": np.repeat([[0], [4], [3], [1], [2]], 8, axis=1),
    "few": np.repeat([[0], [2]], 8, axis=1),
    "part": np.repeat([[0], [2]], 6, axis=1),
}


def model(text: str, opset: int = 18) -> Any:
    words = text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    return net(text, opset=opset, constants={k: v for k, v in CONSTANTS.items() if k in words})


def graph(scatter: str, weights: str = "") -> str:
    return f"""g (float[5,6] x) => (float[5,3] y) <float[6,8] w, float[6,8] u, float[8,3] v{weights}> {{
        a = MatMul(x, w)
        b = MatMul(x, u)
        {scatter}
        y = MatMul(c, v)
    }}"""


SHAPE = """
        s = Shape(b)
        i = Expand(rows, s)"""


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_by_an_expanded_index(reduction: str) -> None:
    """Features of data and updates are one."""
    index = SHAPE if reduction != "none" else "i = Identity(distinct)"
    check(model(graph(f'{index}\n        c = ScatterElements<axis=0,reduction="{reduction}">(a, i, b)')), units=[8])


@pytest.mark.parametrize(
    "index",
    ["i = Identity(table)", "i = Expand(rows, grown)", "i = Tile(rows, repeats)"],
)
def test_where_the_index_comes_from(index: str) -> None:
    text = graph(f'{index}\n        c = ScatterElements<reduction="add">(a, i, b)')
    check(model(text), units=[8])


def test_data_and_updates_that_are_constant() -> None:
    zeros = graph('c = ScatterElements<reduction="add">(zeros, table, b)\n        y0 = MatMul(a, v)').replace(
        "=> (float[5,3] y)", "=> (float[5,3] y, float[5,3] y0)"
    )
    check(net(zeros, opset=18, constants={"zeros": np.zeros((5, 8), np.float32), "table": CONSTANTS["table"]}), [8, 8])
    check(model(graph("c0 = ScatterElements(a, few, t)\n        c = Add(c0, b)", ", float[2,8] t")), units=[8])


def test_before_opset_11() -> None:
    check(model(graph("c = Scatter<axis=0>(a, distinct, b)"), opset=10), units=[8])


def test_a_part_of_the_features_keeps_them() -> None:
    text = graph('c = ScatterElements<axis=0,reduction="add">(a, part, t)', ", float[2,6] t").replace(
        "b = MatMul(x, u)", ""
    )
    assert check(model(text.replace(" float[6,8] u,", "")), []) is None


@pytest.mark.parametrize("axis", [1, -2])
def test_top_tokens(axis: int) -> None:
    """GatherElements of the best tokens, worked on and written back."""
    text = f"""g (float[N,5,6] x) => (float[N,5,3] y) <float[6,8] w, float[6,1] t, float[8,8] u, float[8,3] v> {{
        a = MatMul(x, w)
        score = MatMul(x, t)
        best, where = TopK<axis=1>(score, last)
        i = Expand(where, wide)
        b = GatherElements<axis={axis}>(a, i)
        r = Relu(b)
        d = MatMul(r, u)
        c = ScatterElements<axis={axis}>(a, i, d)
        y = MatMul(c, v)
    }}"""
    check(model(text), units=[8])
