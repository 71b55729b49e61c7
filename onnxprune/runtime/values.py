"""What a model gives, in a form that can be compared: tensors, and the sequences, maps and strings that are none.

ONNX Runtime returns a tensor as an array, a sequence as a list, a map as a dictionary, a sequence of maps (every classifier that ends in
ZipMap) as a list of them, and an empty optional as None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxprune.groups.observation import Array

NUMBERS = "fiubc"
TEXTS = "SU"


def leaves(value: Any) -> Iterator[Any]:
    """The arrays of a value in order; what is in a map comes as two, keys and values, where these are numbers or texts.

    Whatever is neither array nor number nor text (a sparse tensor, say) comes as it is, see `is_comparable`.
    """
    if isinstance(value, dict):
        yield _array(list(value))
        yield from leaves(list(value.values()))
    elif isinstance(value, list | tuple):
        if value and all(isinstance(v, dict) for v in value):
            keys = [list(v) for v in value]
            if all(k == keys[0] for k in keys):
                yield _array(keys[0])
                yield from leaves([x for v in value for x in v.values()])
                return
        if all(isinstance(v, bool | int | float | str | bytes | np.generic) for v in value):
            yield _array(value)
            return
        yield np.array(len(value))
        for v in value:
            yield from leaves(v)
    elif isinstance(value, np.ndarray):
        yield _plain(value)
    elif value is None:
        yield np.zeros(0)
    else:
        yield value


def is_comparable(leaf: Any) -> bool:
    """Can this of `leaves` be compared: numbers, texts?"""
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in NUMBERS + TEXTS


def as_array(value: Any) -> Array:
    """One array of numbers for a value, to judge a model by: a tensor itself, else all numbers of its leaves; texts give none.

    Of a sequence of tensors of one shape, and of a sequence of maps with the same keys, the sequence is the first axis.
    """
    if isinstance(value, np.ndarray):
        plain = _plain(value)
        return plain if plain.dtype.kind in NUMBERS else np.zeros(0)
    if isinstance(value, list | tuple):
        parts = [_values(v) for v in value]
        if parts and all(p.shape == parts[0].shape for p in parts):
            return np.stack(parts)
    return _values(value)


def as_arrays(values: Sequence[Any]) -> list[Array]:
    """`as_array` of every output of a model."""
    return [as_array(v) for v in values]


def _values(value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return as_array(value)
    if isinstance(value, dict):
        value = list(value.values())
    found = [x.ravel() for x in leaves(value) if is_comparable(x) and x.dtype.kind in NUMBERS]
    return np.concatenate(found) if found else np.zeros(0)


def _array(values: Sequence[Any]) -> Array:
    found = np.array(values)
    return found if found.dtype.kind in NUMBERS + TEXTS else np.array([str(v) for v in values])


def _plain(value: Array) -> Array:
    """Strings come as objects; bfloat16 and 8-bit floats as types of their own."""
    if value.dtype.kind == "O":
        return np.array([str(v) for v in value.ravel()]).reshape(value.shape)
    if value.dtype.kind not in NUMBERS + TEXTS:
        return value.astype(np.float32)
    return value
