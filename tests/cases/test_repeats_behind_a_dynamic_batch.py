"""Keys that are the same for every sample, repeated as often as there are samples: the count is computed from sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import onnxprune
from tests.oracle import check, net

CONSTANTS = {
    "heads": np.array([0, 0, 4, 8]),
    "merged": np.array([0, 0, 32]),
    "any": np.array([-1]),
    "width": np.array([8]),
    "four": np.array([4]),
    "i0": np.array([0]),
    "i2": np.array([2]),
    "ones": np.array([1, 1]),
    "table": np.array([5, 4, 8]),
}


def positions(repeat: str) -> str:
    """Scores of queries `[B*4,S,8]` with keys of 5 positions `[4,5,8]`, which `repeat` makes `[B*4,5,8]`."""
    return f"""g (float[B,S,10] x) => (float[B,S,6] y)
        <float[10,32] wq, float[5,10] e, float[10,32] wk, float[4,5,8] u, float[32,6] v> {{
        qp = MatMul(x, wq)
        qr = Reshape(qp, heads)
        qh = Transpose<perm=[0,2,1,3]>(qr)
        s = Shape(qh)
        batch = Gather(s, i0)
        length = Gather(s, i2)
        three = Concat<axis=0>(any, length, width)
        q3 = Reshape(qh, three)
        kp = MatMul(e, wk)
        kr = Reshape(kp, table)
        kh = Transpose<perm=[1,0,2]>(kr)
        s3 = Shape(q3)
        all = Gather(s3, i0)
        samples = Div(all, four)
        times = Concat<axis=0>({repeat}, ones)
        k3 = Tile(kh, times)
        kt = Transpose<perm=[0,2,1]>(k3)
        a = MatMul(q3, kt)
        p = Softmax<axis=-1>(a)
        u3 = Tile(u, times)
        o3 = MatMul(p, u3)
        again = Concat<axis=0>(batch, four, length, width)
        o = Reshape(o3, again)
        ot = Transpose<perm=[0,2,1,3]>(o)
        flat = Reshape(ot, merged)
        y = MatMul(flat, v)
    }}"""


def test_as_often_as_there_are_samples() -> None:
    """3 of 4 heads, 8 positions each of queries with keys, and of values."""
    check(net(positions("batch"), constants=CONSTANTS), units=[8, 8], rows=[4])


def test_the_count_is_read_from_the_axis_that_is_cut() -> None:
    """The heads of all samples, divided by 4: a size is put back to the original's by its ratio, not to what was observed."""
    check(net(positions("samples"), constants=CONSTANTS), units=[8, 8], rows=[4])


def test_samples_one_at_a_time(tmp_path: Path) -> None:
    """With data of one sample each, the same can be removed as without data."""
    model = net(positions("samples"), constants=CONSTANTS)
    np.savez(tmp_path / "one.npz", x=np.random.default_rng(0).standard_normal((1, 4, 10)).astype(np.float32))
    found = [onnxprune.inspect(model, data=data)["groups"] for data in (None, str(tmp_path))]
    free, given = ([(g["id"], g["kind"], g["units"], g["removable"]) for g in groups] for groups in found)
    assert free == given
