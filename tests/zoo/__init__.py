"""Graphs as exporters write them: where they lie, and inputs for them. The format is told in `tests/benchmarks/stripped.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, helper

from tests.benchmarks.stripped import SUFFIX, load_graph
from tests.oracle import Array

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "zoo"  # more of them, which lie beside some checkouts
VOCABULARY = 100  # token ids lie below


def files(folder: Path = HERE) -> dict[str, Path]:
    """The graphs of a folder, by name."""
    return {p.name.removesuffix(SUFFIX): p for p in sorted(folder.glob(f"*{SUFFIX}"))}


def feeds(model: ModelProto, batch: int, seed: int = 0) -> dict[str, Array]:
    """Random inputs: normal numbers, token ids, masks of ones. Dynamic dimensions get `batch`."""
    rng = np.random.default_rng(seed)
    given = {t.name for t in model.graph.initializer}
    result: dict[str, Array] = {}
    for info in model.graph.input:
        if info.name in given:
            continue
        kind = info.type.tensor_type
        shape = [d.dim_value or batch for d in kind.shape.dim]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if dtype.kind == "f":
            result[info.name] = rng.standard_normal(shape).astype(dtype)
        elif "mask" in info.name:
            result[info.name] = np.ones(shape, dtype)
        else:
            result[info.name] = rng.integers(3, VOCABULARY, shape).astype(dtype)
    return result


def has_dynamic_batch(model: ModelProto) -> bool:
    """True where some input's first dimension has no fixed size."""
    return any(not i.type.tensor_type.shape.dim[0].dim_value for i in model.graph.input if i.type.tensor_type.shape.dim)


__all__ = ["HERE", "SHARED", "feeds", "files", "has_dynamic_batch", "load_graph"]
