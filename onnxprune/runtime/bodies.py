"""Inputs for bodies that an operator feeds by itself (BeamSearch its decoder): made from what they declare, in sizes that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from onnx import GraphProto, NodeProto, helper

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds

SIZES = range(2, 8)
SYMBOLS = 4  # that may be tried together: a past, what is new, both, and a batch

LOOPS = ("Loop", "Scan", "If")


def feeds_itself(node: NodeProto, body: GraphProto) -> bool:
    """Is it unknown what the body is fed?"""
    return bool(body.input) and node.op_type not in LOOPS


def trials(body: GraphProto) -> list[dict[str, int]]:
    """Sizes for the symbols of a body's inputs, all different ones first; none where an input has no shape."""
    symbols: list[str] = []
    for value in body.input:
        if not value.type.tensor_type.HasField("shape"):
            return []
        symbols += [
            _symbol(value.name, a, d.dim_param)
            for a, d in enumerate(value.type.tensor_type.shape.dim)
            if not d.dim_value
        ]
    names = list(dict.fromkeys(symbols))
    if len(names) > SYMBOLS:
        return []
    found = [dict(zip(names, sizes, strict=True)) for sizes in product(SIZES, repeat=len(names))]
    return sorted(found, key=lambda s: (-len(set(s.values())), sum(s.values())))


def _symbol(name: str, axis: int, symbol: str) -> str:
    return symbol or f"{name}:{axis}"


def made(body: GraphProto, sizes: dict[str, int]) -> Feeds:
    """Ones, as tokens, positions and masks; floats between 0 and 1."""
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for value in body.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value or sizes[_symbol(value.name, a, d.dim_param)] for a, d in enumerate(tensor.shape.dim)]
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = rng.random(shape).astype(kind) if kind.kind == "f" else np.ones(shape, kind)
    return feeds


def accepted(body: GraphProto, others: Feeds, runs: Callable[[Feeds], object]) -> Iterator[Feeds]:
    """Feeds that the body takes: the first, and one that differs from it in every size. others: what it captures."""
    first: dict[str, int] | None = None
    for sizes in trials(body):
        if first is not None and any(sizes[n] == first[n] for n in first):
            continue
        feeds = others | made(body, sizes)
        try:
            runs(feeds)
        except BadInputError:
            continue
        yield feeds
        if first is not None or not sizes:
            return
        first = sizes
