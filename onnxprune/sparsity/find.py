"""The weights of a model that can become sparse, with what each operator takes for its inputs.

    Conv [o, i/g, k...]    the input channels, tap by tap of the kernel (as TensorRT counts 2:4 patterns)
    Gemm, MatMul           the contracted axis, transposed or not
    LSTM, GRU, RNN         the last axis of W and R

A weight may lie behind nodes that only move or cast it (`moved`), or round it to codes and back. What is stored once is found once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from onnxprune import ops
from onnxprune.groups.analysis import Analysis, Use
from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array
from onnxprune.model.graph import Node
from onnxprune.ops import failures
from onnxprune.ops.base import Rule
from onnxprune.ops.linear import Linear, LinearContext, Product
from onnxprune.sparsity.weights import Left, SparseWeight

SAME = {"Identity", "Cast"}
RESHAPES = {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}
Move = Callable[[Array], Array]


@dataclass(frozen=True)
class Stored:
    """Where a constant operand is stored, and how it gets from there to the operator."""

    tensor: str
    moves: tuple[Move, ...]

    def moved(self, array: Array) -> Array:
        for move in self.moves:
            array = move(array)
        return array


@dataclass(frozen=True)
class _Found:
    stored: Stored
    use: Use
    node: str
    run: int
    axis: str
    unfold: Move


def find_weights(analysis: Analysis) -> tuple[list[SparseWeight], list[Left]]:
    """Every constant of at least two dimensions that an operator multiplies by, in graph order; those that stay, with reasons."""
    return _Finder(analysis).find()


class _Finder:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.view = analysis.view
        self.makers = {o: n for n in self.view.graph.walk() for o in n.outputs if o}
        self.fixed: dict[str, bool] = {}

    def find(self) -> tuple[list[SparseWeight], list[Left]]:
        found: dict[str, list[_Found]] = {}
        left: dict[str, Left] = {}
        for node in self.view.graph.walk():
            for item in self._of(node):
                if isinstance(item, Left):
                    left.setdefault(item.tensor, item)
                else:
                    found.setdefault(item.stored.tensor, []).append(item)
        return [self._weight(tensor, items) for tensor, items in found.items()], list(left.values())

    def _weight(self, tensor: str, items: list[_Found]) -> SparseWeight:
        first, shape = items[0], tuple(int(n) for n in self.view.constants[tensor].shape)
        places = first.unfold(np.arange(int(np.prod(shape))).reshape(shape)) if len(items) > 1 else None
        alike = [first]
        for other in items[1:]:
            theirs = other.unfold(np.arange(int(np.prod(shape))).reshape(shape))
            if places is not None and theirs.shape == places.shape and (theirs == places).all():
                alike.append(other)
        uses = tuple(item.use for item in alike)
        readers = max(len(self.analysis.view_uses(tensor)), len(items))
        return SparseWeight(tensor, shape, uses, readers - len(uses), first.node, first.run, first.axis, first.unfold)

    # -- one node

    def _of(self, node: Node) -> list[_Found | Left]:
        rule = ops.rule_for(node.op, node.domain)
        if rule.linear is None and rule.weights is None and rule.macs is None:
            return []
        stored = [self._stored(key) if key else None for key in node.inputs]
        result: list[_Found | Left] = [s for s in stored if isinstance(s, Left)]
        result = [replace(x, node=str(node)) for x in result if isinstance(x, Left)]
        shapes = tuple(self._shape(key) if key else None for key in node.inputs)
        for key, s in zip(node.inputs, stored, strict=True):
            if isinstance(s, Stored) and self._kind(s.tensor) in "iu" and len(self._shape(key) or ()) > 1:
                result.append(Left(s.tensor, str(node), f"is quantized ({self._type(s.tensor)})"))
        is_constant = tuple(isinstance(s, Stored) and self._kind(s.tensor) == "f" for s in stored)
        context = LinearContext(node.attrs, shapes, is_constant)
        for i, run, axis, unfold in _forms(rule, str(node), context):
            place = stored[i]
            if isinstance(place, Stored) and is_constant[i]:
                moved = _chain(place, unfold)
                result.append(_Found(place, (node.key, i), str(node), run, axis, moved))
        return result

    def _shape(self, key: str) -> Shape | None:
        found = self.analysis.observation.shapes.get(key)
        if found is None and key in self.view.constants:
            return tuple(int(n) for n in self.view.constants[key].shape)
        return found

    def _type(self, tensor: str) -> str:
        try:
            return str(np.dtype(self.view.constants[tensor].dtype))
        except TypeError:
            return "a type of few bits"

    def _kind(self, tensor: str) -> str:
        """f: floats that numpy calculates with; i, u: integers."""
        try:
            kind = np.dtype(self.view.constants[tensor].dtype).kind
        except TypeError:
            return "u"
        return str(kind)

    # -- where an operand comes from

    def _stored(self, key: str) -> Stored | Left | None:
        """None where it depends on inputs."""
        moves: list[Move] = []
        decoder: Node | None = None
        at = key
        while at not in self.view.constants:
            node = self.makers.get(at)
            if node is None or not self._is_fixed(at):
                return None
            rule = ops.rule_for(node.op, node.domain)
            source = node.inputs[0] if node.inputs else ""
            if rule.coded:
                decoder, at = decoder or node, source
                continue
            if not source or node.domain not in ("", "ai.onnx") or node.op not in SAME | RESHAPES | {"Transpose"}:
                return Left(at, "", f"is computed by {node}, not stored")
            if node.op not in SAME:
                moves.insert(0, self._move(node, at))
            at = source
        if decoder is not None and self._kind(at) != "f":
            return Left(at, "", f"is quantized (it comes from {decoder})")
        return Stored(at, tuple(moves))

    def _move(self, node: Node, output: str) -> Move:
        if node.op == "Transpose":
            perm: Any = node.attrs.get("perm")
            return lambda array: array.transpose(perm)
        shape = self.analysis.observation.shapes[output]
        return lambda array: array.reshape(shape)

    def _is_fixed(self, key: str) -> bool:
        """Does a tensor depend on no input?"""
        if key not in self.fixed:
            node = self.makers.get(key)
            self.fixed[key] = key in self.view.constants or (
                node is not None
                and bool(node.inputs)
                and not node.subgraphs
                and all(self._is_fixed(k) for k in node.inputs if k)
            )
        return self.fixed[key]


def _chain(stored: Stored, unfold: Move) -> Move:
    return lambda array: unfold(stored.moved(array))


def _forms(rule: Rule, node: str, context: LinearContext) -> list[tuple[int, int, str, Move]]:
    """(input, run, words, how its array unfolds to [g, K, O]) of every weight of a node."""
    if rule.linear is not None and all(s is not None for s in context.shapes):
        linear = failures.attempt(rule, "linear", node, partial(rule.linear, context), None)
        if linear is not None:
            return [_linear_form(linear, context)]
    if rule.weights is None:
        return []
    found = []
    for i, axis in failures.attempt(rule, "weights", node, partial(rule.weights, context), ()):
        if context.has(i) and context.is_constant[i] and len(context.shape(i)) > 1:
            shape = context.shape(i)
            at = axis % len(shape)
            found.append((i, shape[at], f"axis {at}", _by_axis(at)))
    return found


def _linear_form(linear: Linear, context: LinearContext) -> tuple[int, int, str, Move]:
    if isinstance(linear, Product):
        plain = replace(linear, alpha=1.0)
        contracted = (1 if linear.transposed else 0) % len(context.shape(linear.w))
        return linear.w, linear.width, f"axis {contracted}", plain.matrix
    run = linear.channels_in // linear.groups
    transposed = linear.upsampled is not None
    return linear.w, run, "input channels (axis 0)" if transposed else "input channels (axis 1)", linear.matrix


def _by_axis(axis: int) -> Move:
    def unfold(array: Array) -> Array:
        moved = np.moveaxis(array, axis, 0)
        return moved.reshape(1, moved.shape[0], -1)

    return unfold
