"""Layers in bodies of loops: what they read and give in every step (`model/bodies.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from onnx import helper

from onnxprune.groups.observation import Array
from onnxprune.model.bodies import Watch, path_of
from onnxprune.ops.layer import LinearLayer


def inputs(layers: Iterable[LinearLayer], constant: Callable[[str], Array]) -> list[Watch]:
    """What these layers read, of those that lie in a body."""
    return [_watch(x, x.x, x.reads, constant) for x in layers if x.loop]


def outputs(layers: Iterable[LinearLayer], constant: Callable[[str], Array], are_shapes: bool = False) -> list[Watch]:
    """What they give, or the shapes of that."""
    return [_watch(x, x.y, x.gives, constant, are_shapes) for x in layers if x.loop]


def _watch(
    layer: LinearLayer, tensor: str, output: str, constant: Callable[[str], Array], is_shape: bool = False
) -> Watch:
    kind = helper.np_dtype_to_tensor_dtype(constant(layer.w).dtype)
    return Watch(layer.loop, tensor.removeprefix(path_of(layer.loop)), output, kind, is_shape)


def by_step(layer: LinearLayer, *values: Array) -> Iterator[tuple[Array, ...]]:
    """Values of `reads` or `gives`, step by step as far as all have one; outside of loops there is one step."""
    yield from zip(*values, strict=False) if layer.loop else [values]


def steps_in(layer: LinearLayer, value: Array) -> int:
    """How many steps a value of `reads` or `gives` has."""
    return max(1, len(value)) if layer.loop else 1


__all__ = ["by_step", "inputs", "outputs", "steps_in"]
