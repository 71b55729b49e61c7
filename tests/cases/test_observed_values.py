"""Values that are equal in both observed runs pass for constants: the runs must differ wherever they can."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from onnxprune import NothingPrunableError
from onnxprune.analyse.observe import feeds_of
from onnxprune.analyse.scope import Scope
from onnxprune.model.load import load
from tests.oracle import net, prune


def test_positions_that_depend_on_values_are_not_taken_for_constants() -> None:
    """No dimension is dynamic, and still another input takes other columns."""
    model = net(
        """g (float[4,8] x) => (float[4,3] y) <float[8,16] w, float[8,16] q, int64[1] k, float[3,3] o> {
        h = MatMul(x, w)
        a = MatMul(x, q)
        z = ReduceMean<axes=[0],keepdims=0>(a)
        top, index = TopK(z, k)
        r = Relu(h)
        g = Gather<axis=1>(r, index)
        y = MatMul(g, o)
    }""",
        constants={"k": np.array([3])},
    )
    with pytest.raises(NothingPrunableError, match=re.escape("looks up positions of axis 1 that are computed from")):
        prune(model, 0.5)


def test_where_random_values_will_not_do_the_second_run_is_of_another_file(tmp_path: Path) -> None:
    """Random numbers are hardly ever a shape that a Reshape takes."""
    model = net("""g (float[N] x, int64[2] shape) => (float[R,C] y) {
        r = Reshape(x, shape)
        y = Relu(r)
    }""")
    for k, shape in enumerate([(2, 5), (2, 5), (3, 7)]):
        x = np.ones(shape[0] * shape[1], np.float32)
        np.savez(tmp_path / f"{k}.npz", x=x, shape=np.array(shape))
    first, second = feeds_of(load(model), Scope(data=tmp_path))
    assert first["shape"].tolist() == [2, 5] and second["shape"].tolist() == [3, 7]
