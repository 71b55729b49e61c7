"""Which units does nobody miss? Those whose removal changes no output, by the zeros among the weights.

A unit is dead if at every tensor that carries it, every reader either

- multiplies it by weights that are all zero,
- passes it on, position by position, to a tensor that is looked at in its turn, or
- gets nothing but zeros: the producer's weights and bias are zero there, and what lies between keeps zero at zero.

Readers that compare or average positions (norms, softmax, products of two activations) are missed by such a unit unless it is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxprune import ops
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps, Shape
from onnxprune.groups.observation import Array
from onnxprune.model.graph import Node
from onnxprune.ops import failures
from onnxprune.ops.linear import LinearContext
from onnxprune.ops.zeros import any_zero, keeps_zero

PASSES = ("pointwise", "movement", "pooling")


def dead_units(analysis: Analysis) -> Bools:
    """Bool per class: removable as a whole, in legal steps, without changing what the model computes."""
    dead = _Zeros(analysis).dead()
    removed = np.zeros(analysis.solution.count, bool)
    for group in analysis.groups:
        atoms = [block[free & dead[block].all(axis=1)] for block, free in zip(group.blocks, group.free, strict=True)]
        steps = min(len(a) // t for a, t in zip(atoms, group.per_step, strict=True))
        for ids, t in zip(atoms, group.per_step, strict=True):
            removed[ids[: min(steps, group.removable) * t]] = True
    closed = analysis.solution.closure(removed)
    return closed if not (closed & analysis.solution.pinned).any() else np.zeros_like(removed)


@dataclass(frozen=True)
class _Operand:
    """A constant operand: classes that it carries at all, along its contracted axis, and those where it is not zero."""

    carried: Bools
    nonzero: Bools
    consumed: Bools
    consumed_nonzero: Bools


class _Zeros:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.count = analysis.solution.count
        self.classes = analysis.solution.classes
        self.nodes = [n for n in analysis.view.graph.walk() if n.key not in analysis.skipped]
        self.operands: dict[str, list[_Operand]] = {n.key: self._operands(n) for n in self.nodes}
        self.zero: dict[str, Bools] = {}

    def dead(self) -> Bools:
        """Bool per class."""
        solution = self.analysis.solution
        child, parent = solution.children
        dead = self._none()
        dead[parent] = True
        for key in self.analysis.maps:
            dead |= self._carried(key)
        dead &= ~solution.pinned & ~solution.approximate
        for node in self.nodes:
            self._propagate(node)
        for node in self.nodes:
            dead &= ~self._missed(node)
        for path, graph in self.analysis.view.gs_graphs.items():  # what leaves a graph is not followed
            for output in graph.outputs:
                dead &= ~self._carried(path + output.name)
        for _ in range(4):  # a row is dead when all of it is
            dead[parent[~dead[child]]] = False
        return dead

    # -- sets of classes, as bools

    def _none(self) -> Bools:
        return np.zeros(self.count, bool)

    def _in(self, facets: Maps) -> Bools:
        found = self._none()
        for facet in facets:
            ids = self.classes[facet].ravel()
            found[ids[ids >= 0]] = True
        return found

    def _carried(self, key: str) -> Bools:
        return self._in(self.analysis.maps.get(key, ()))

    def _zero_at(self, key: str) -> Bools:
        return self.zero.get(key, self._none())

    def _nonzero(self, values: Array, facets: Maps) -> Bools:
        found = self._none()
        for facet in facets:
            axes = tuple(a for a, n in enumerate(facet.shape) if n == 1)
            some = (values != 0).any(axis=axes, keepdims=True)
            ids = self.classes[facet]
            found[ids[(ids >= 0) & some]] = True
        return found

    def _operands(self, node: Node) -> list[_Operand]:
        axes = self._contracted(node)
        found = []
        for i in range(len(node.inputs)):
            use = self.analysis.uses.get((node.key, i))
            if use is None:
                continue
            source, facets = use
            values = np.asarray(self.analysis.view.constants[source].values)
            inner = tuple(f for f in facets if i in axes and f.shape[axes[i]] > 1)
            found.append(
                _Operand(self._in(facets), self._nonzero(values, facets), self._in(inner), self._nonzero(values, inner))
            )
        return found

    def _contracted(self, node: Node) -> dict[int, int]:
        """Contracted axis of every operand that is multiplied by, by input."""
        rule = ops.rule_for(node.op, node.domain)
        if rule.weights is None:
            return {}
        shapes = tuple(self._shape(key) if key else None for key in node.inputs)
        is_constant = tuple(key in self.analysis.view.constants for key in node.inputs)
        context = LinearContext(node.attrs, shapes, is_constant)
        places = failures.attempt(rule, "weights", str(node), partial(rule.weights, context), ())
        return {i: axis for i, axis in places if i < len(shapes) and shapes[i] is not None}

    def _shape(self, key: str) -> Shape | None:
        constant = self.analysis.view.constants.get(key)
        return tuple(constant.shape) if constant is not None else self.analysis.observation.shapes.get(key)

    # -- one node

    def _activations(self, node: Node) -> list[str]:
        return [k for k in node.inputs if k and k not in self.analysis.view.constants]

    def _propagate(self, node: Node) -> None:
        """Which classes of the outputs are zero for any input."""
        rule = ops.rule_for(node.op, node.domain)
        inputs, operands = self._activations(node), self.operands[node.key]
        zero = self._none()
        if rule.weights is not None and rule.kind == "contraction":
            if len(inputs) == 1 and operands and "activation" not in node.attrs and self._all_known(node):
                zero = np.logical_and.reduce([x.carried & ~x.nonzero for x in operands])
        elif any_zero(node):
            zero = np.logical_or.reduce([self._zero_at(k) for k in inputs] + [x.carried & ~x.nonzero for x in operands])
        elif keeps_zero(node) and self._all_known(node):
            zero = np.logical_and.reduce(
                [self._zero_at(k) | ~self._carried(k) for k in inputs] + [~x.nonzero for x in operands]
            )
        for key in node.outputs:
            if key and zero.any():
                self.zero[key] = zero & self._carried(key)

    def _all_known(self, node: Node) -> bool:
        """Does every constant operand that holds numbers carry units, or hold zeros only? Do all activations?"""
        rule = ops.rule_for(node.op, node.domain)
        for i, key in enumerate(node.inputs):
            if not key or i in rule.params:
                continue
            constant = self.analysis.view.constants.get(key)
            if constant is None:
                if rule.kind != "contraction" and not self._carried(key).any():
                    return False
                continue
            use = self.analysis.uses.get((node.key, i))
            if (use is None or not use[1]) and np.asarray(constant.values != 0).any():
                return False
        return True

    def _missed(self, node: Node) -> Bools:
        """Classes that this node looks at and that are neither zero, nor met by zeros, nor passed on."""
        rule = ops.rule_for(node.op, node.domain)
        if rule.carries_shape:
            return self._none()
        inputs = self._activations(node)
        zero = np.logical_or.reduce([self._none(), *(self._zero_at(k) for k in inputs)])
        carried = np.logical_or.reduce([self._none(), *(self._carried(k) & ~self._zero_at(k) for k in inputs)])
        out = np.logical_and.reduce([~self._none(), *(self._carried(k) for k in node.outputs if k)])
        operands = self.operands[node.key]
        consumed = np.logical_or.reduce([self._none(), *(x.consumed for x in operands)])
        nonzero = np.logical_or.reduce([self._none(), *(x.consumed_nonzero for x in operands)])
        passed = out if rule.kind in PASSES else self._none()
        if rule.weights is not None and rule.kind == "contraction":
            known = np.logical_or.reduce([self._none(), *(x.carried for x in operands)])
            passed = out & known & ~consumed  # one channel in, the same one out
        met = consumed & ~nonzero if rule.weights is not None else self._none()
        missed = carried & ~passed & ~met
        return np.asarray(missed | (nonzero & ~zero))
