"""Graphs as exporters write them, without their large weights: reading them, and inputs for them.

A file `NAME.onnx.z` is a zlib-compressed ONNX model. Constants of more than 4,096 elements have no data; the model's metadata
says what to draw instead: `stripped_weights` is JSON, from the constant's name to `[mean, standard deviation, seed]`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from tests.oracle import Array, graphs

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "zoo"  # more of them, which lie beside some checkouts
SUFFIX = ".onnx.z"
NOTES = ("stripped_weights", "source")  # metadata entries that the stripping added
VOCABULARY = 100  # token ids lie below


def files(folder: Path = HERE) -> dict[str, Path]:
    """The graphs of a folder, by name."""
    return {p.name.removesuffix(SUFFIX): p for p in sorted(folder.glob(f"*{SUFFIX}"))}


def load_graph(path: Path) -> ModelProto:
    """The model of a file, with weights drawn from recorded seeds: the same bytes every time."""
    model = onnx.load_model_from_string(zlib.decompress(path.read_bytes()))
    notes = {entry.key: entry.value for entry in model.metadata_props if entry.key in NOTES}
    kept = [entry for entry in model.metadata_props if entry.key not in NOTES]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    recipes = json.loads(notes.get("stripped_weights", "{}"))
    for name, tensor in constants(model.graph):
        if name in recipes and not tensor.raw_data:
            draw(tensor, *recipes[name])
    return model


def constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Every initializer and every value of a Constant node, those of subgraphs too."""
    for part in graphs(graph):
        yield from ((t.name, t) for t in part.initializer)
        for node in part.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR and node.output:
                    yield node.output[0], attribute.t


def draw(tensor: TensorProto, mean: float, deviation: float, seed: int) -> None:
    """Fill a constant with normal numbers.

    Kernels of convolutions, [O, I, kH, kW], get a variance of 2 / (I kH kW) (He et al. 2015), with which deep random
    networks neither fade out nor overflow; constants that were constant get a little noise, so that no unit is like another.
    """
    shape = tuple(tensor.dims)
    if len(shape) >= 4:
        deviation = float(np.sqrt(2.0 / np.prod(shape[1:])))
    values = np.random.default_rng(seed).standard_normal(shape) * (deviation or 1e-3) + mean
    tensor.raw_data = values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes()


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
