"""Graphs as exporters write them, without their large weights.

A file `NAME.onnx.z` is a zlib-compressed ONNX model. Large constants have no data; the model's metadata entry
`stripped_weights` is JSON that says what to draw instead: name to `[mean, standard deviation, seed]`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

SUFFIX = ".onnx.z"
NOTES = ("stripped_weights", "source")  # metadata entries that the stripping added


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
    """Every initializer and every tensor of a node's attributes, those of subgraphs too."""
    yield from ((t.name, t) for t in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and node.output:
                yield node.output[0], attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from constants(attribute.g)


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
