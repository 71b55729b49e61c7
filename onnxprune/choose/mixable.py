"""Which units may be mixed: blocks of units that nothing but linear maps makes and reads (see `choose/mix.py`).

Which operators may lie between is for their rules to say (`Rule.mixing`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune import ops
from onnxprune.calibrate.calibration import Calibration
from onnxprune.groups.analysis import Analysis, Use
from onnxprune.groups.maps import Facet, Shape, period
from onnxprune.groups.observation import Array
from onnxprune.groups.units import Ids
from onnxprune.model.graph import Node
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Floats

CONSTANT = 1e-6  # variance over squared mean


@dataclass(frozen=True)
class Carried:
    """Where a tensor has the units of a block: `lines` [copies, n], positions over the axes that `facet` varies along.

    marks [copies]: the first unit of each line. Queries and keys may stand in one tensor, and only their units tell them apart.
    """

    facet: Shape
    lines: NDArray[np.int64]
    marks: Ids

    def front(self, values: Array) -> Array:
        """[positions, rest]: the axes that tell units apart, then all others."""
        axes = tuple(a for a, n in enumerate(self.facet) if n > 1)
        moved = np.moveaxis(values, axes, range(len(axes)))
        return moved.reshape(int(np.prod(self.facet)), -1)

    def back(self, rows: Array, shape: Shape) -> Array:
        axes = tuple(a for a, n in enumerate(self.facet) if n > 1)
        moved = np.moveaxis(np.empty(shape, np.bool_), axes, range(len(axes))).shape
        return np.moveaxis(rows.reshape(moved), range(len(axes)), axes)

    def mixed(self, values: Array, matrices: Sequence[Floats]) -> Array:
        """`values` with every line x replaced by its matrix times x."""
        rows = self.front(values).astype(np.float64)
        for line, matrix in zip(self.lines, matrices, strict=True):
            rows[line] = matrix @ rows[line]
        return self.back(rows, values.shape)


@dataclass(frozen=True)
class RotatedConstant:
    """A constant to change. reads: it is multiplied by the units, else it makes (or is added to) them. sides: 0 or 1, per line."""

    use: Use
    carried: Carried
    reads: bool
    sides: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Classes [n, k] that may be mixed, the columns all alike: constants that follow, and what the units are multiplied by in the end.

    product: tensors of side 0 and of side 1 that are multiplied with each other, each as (key, where it has the units). Else layers:
    all that read the units, and `side`, theirs there. tensors: all that have the units.
    """

    classes: Ids
    tensors: tuple[str, ...]
    constants: tuple[RotatedConstant, ...]
    product: tuple[tuple[str, Carried], ...]
    layers: tuple[LinearLayer, ...] = ()
    side: int = 0


def blocks_of(analysis: Analysis, calibration: Calibration) -> list[Block]:
    """Blocks whose classes go k at a time are tried column by column, and with one T for all columns where that cannot be."""
    aligned = [
        block.reshape(len(block), -1)
        for group in analysis.groups
        if group.removable
        for block, free in zip(group.blocks, group.free, strict=True)
        if len(block) > 1 and free.all() and (group.kind != "rows" or block.shape[1] == 1)
    ]
    found = _Finder(analysis, calibration, [c[:, None] for block in aligned for c in block.T]).blocks()
    done = np.zeros(analysis.solution.count, bool)
    for block in found:
        done[block.classes] = True
    left = [block for block in aligned if block.shape[1] > 1 and not done[block].any()]
    return found + (_Finder(analysis, calibration, left).blocks() if left else [])


class _Finder:
    def __init__(self, analysis: Analysis, calibration: Calibration, candidates: Sequence[Ids]) -> None:
        self.analysis = analysis
        self.layers = {x.key: x for x in calibration.layers if not x.loop}
        self.flat = {o for n in calibration.flat.graph.node for o in n.output}
        self.members = candidates
        self.block_of = np.full(analysis.solution.count + 1, -1)  # the last entry answers for class -1
        for k, classes in enumerate(candidates):
            self.block_of[classes] = k
        self.refused: set[int] = set()
        self.tensors: dict[int, dict[str, Carried]] = defaultdict(dict)
        self.constants: dict[int, dict[Use, Carried]] = defaultdict(dict)
        for key, maps in analysis.maps.items():
            self._note(self.tensors, key, [self._of_one_sample(key, f) for f in maps])
        for use, (_, maps) in analysis.uses.items():
            self._note(self.constants, use, maps)  # type: ignore[arg-type]

    def _of_one_sample(self, key: str, facet: Facet) -> Facet:
        """What lies along an axis once per sample, once."""
        for axis, size in enumerate(facet.shape):
            if size > 1 and self.analysis.observation.is_dynamic(key, axis):
                facet = facet.take(range(period(facet, axis)), axis=axis)
        return facet

    def _note(self, into: dict[int, dict[str, Carried]], key: str, maps: Sequence[Facet]) -> None:
        for facet in maps:
            classes = self.analysis.solution.classes[facet].ravel()
            owners = self.block_of[classes]
            for block in np.unique(owners[owners >= 0]).tolist():
                lines = lines_of(classes, self.members[block])
                if lines is None or key in into[block]:
                    self.refused.add(block)
                else:
                    into[block][key] = Carried(facet.shape, lines, facet.ravel()[lines[:, 0]])

    def blocks(self) -> list[Block]:
        nodes: dict[int, list[Node]] = defaultdict(list)
        where: dict[str, set[int]] = defaultdict(set)
        for block, tensors in self.tensors.items():
            for key in tensors:
                where[key].add(block)
        by_node: dict[str, set[int]] = defaultdict(set)
        for block, uses in self.constants.items():
            for node_key, _ in uses:
                by_node[node_key].add(block)
        for node in self.analysis.view.graph.walk():
            touched = set(by_node.get(node.key, ())).union(*(where.get(x, ()) for x in (*node.inputs, *node.outputs)))
            for block in touched:
                nodes[block].append(node)
        found = []
        for block in range(len(self.members)):
            if block not in self.refused and block in nodes:
                made = self._block(block, nodes[block])
                if made is not None:
                    found.append(made)
        return found

    def _block(self, block: int, nodes: list[Node]) -> Block | None:
        tensors, constants = self.tensors[block], self.constants[block]
        made = {o for n in nodes for o in n.outputs}
        if any(key not in made or key not in self.flat for key in tensors):
            return None
        walk = _Walk(tensors)
        for node in nodes:
            rule = ops.rule_for(node.op, node.domain)
            operands = {i: x for i, x in enumerate(node.inputs) if x and i not in rule.params}
            fixed = [i for i in operands if (node.key, i) in constants]
            if rule.carries_shape:
                continue
            if node.subgraphs or any(self.analysis.uses[node.key, i][0] != operands[i] for i in fixed):
                return None
            at = _At(node, fixed, [x for i, x in operands.items() if i not in fixed])
            layer = self.layers.get(node.key)
            if layer is not None:
                passes = walk.layer(at, layer)
            else:
                mixing = rule.mixing_of(node.attrs)
                factors = [x for x in at.operands if x not in tensors]
                even = mixing == "scale" and all(self._is_even(x, tensors[o]) for o in walk.given(at) for x in factors)
                passes = (
                    (mixing == "copy" and walk.copy(at))
                    or (mixing == "sum" and walk.sum(at))
                    or (mixing == "scale" and even and walk.scale(at))
                    or (mixing == "product" and walk.product(at))
                )
            if not passes:
                return None
        return self._made(self.members[block], walk, constants)

    def _made(self, classes: Ids, walk: _Walk, constants: dict[Use, Carried]) -> Block | None:
        """What the walk found, where every line has a side and all ends are layers, or the two sides of one product."""
        sides, tensors = walk.sides, walk.tensors
        ends = [x for pair in walk.products for x in pair] + [layer.x for layer in walk.readers]
        if (
            sides.contradict
            or (len(walk.products), bool(walk.readers)) not in ((1, False), (0, True))
            or not self._own(u for u, _, _ in walk.follow)
        ):
            return None
        if any(len(set(sides.of(tensors[x]))) > 1 for x in ends):
            return None
        at_ends = {sides.of(tensors[x.x])[0] for x in walk.readers}
        if len(at_ends) > 1:
            return None
        followed = []
        for use, reads, x in walk.follow:
            found = self._per_line(constants[use], sides.of(x))
            if found is None:
                return None
            followed.append(RotatedConstant(use, constants[use], reads, found))
        pair = sorted(ends, key=lambda x: sides.of(tensors[x])[0]) if walk.products else []
        return Block(
            classes,
            tuple(tensors),
            tuple(followed),
            tuple((x, tensors[x]) for x in pair),
            tuple(walk.readers),
            max(at_ends, default=0),
        )

    @staticmethod
    def _per_line(constant: Carried, sides: Sequence[int]) -> tuple[int, ...] | None:
        """Sides of a constant's lines, from those of the tensor that it makes or is multiplied by."""
        if len(sides) == len(constant.lines):
            return tuple(sides)
        return (sides[0],) * len(constant.lines) if len(set(sides)) == 1 else None

    def _is_even(self, key: str, carried: Carried) -> bool:
        """Does a factor treat all units of a line alike?"""
        constants, shapes = self.analysis.view.constants, self.analysis.observation.shapes
        shape = tuple(constants[key].shape) if key in constants else shapes.get(key)
        if shape is None or len(shape) > len(carried.facet):
            return False
        shape = (1,) * (len(carried.facet) - len(shape)) + shape
        own = [n if m > 1 else 1 for n, m in zip(shape, carried.facet, strict=True)]
        if any(n not in (1, m) for n, m in zip(own, carried.facet, strict=True)):
            return False
        places = np.broadcast_to(np.arange(np.prod(own)).reshape(own), carried.facet).ravel()[carried.lines]
        return bool((places == places[:, :1]).all())

    def _own(self, uses: Iterable[Use]) -> bool:
        """Are these constants of floats that nothing else reads?"""
        for use in uses:
            constant, _ = self.analysis.uses[use]
            values = self.analysis.view.constants[constant]
            if np.dtype(values.dtype).kind != "f" or len(self.analysis.view_uses(constant)) != 1:
                return False
        return True


@dataclass(frozen=True)
class _At:
    """A node: the inputs at which constants have the units, and what it reads beside them."""

    node: Node
    fixed: list[int]
    operands: list[str]

    @property
    def uses(self) -> list[Use]:
        return [(self.node.key, i) for i in self.fixed]


class _Walk:
    """From node to node of one block. Each method says whether the units pass a node of its kind as a linear map of them would.

    follow: constants, with whether they are multiplied by the units, and the tensor that they make or read.
    """

    def __init__(self, tensors: dict[str, Carried]) -> None:
        self.tensors = tensors
        self.sides = _Sides()
        self.follow: list[tuple[Use, bool, Carried]] = []
        self.products: list[tuple[str, str]] = []
        self.readers: list[LinearLayer] = []

    def carried(self, at: _At) -> list[str]:
        return [x for x in at.operands if x in self.tensors]

    def given(self, at: _At) -> list[str]:
        return [o for o in at.node.outputs if o in self.tensors]

    def layer(self, at: _At, layer: LinearLayer) -> bool:
        """It makes the units, and then all that it adds has them too; or it reads them."""
        carried, given = self.carried(at), self.given(at)
        weight = (at.node.key, layer.linear.w)
        if weight not in at.uses or bool(carried) == bool(given):
            return False
        if carried:
            if carried != [layer.x] or at.uses != [weight]:
                return False
            self.readers.append(layer)
        elif set(at.operands) - {layer.x}:
            return False
        self.follow += [(use, bool(carried), self.tensors[(carried or given)[0]]) for use in at.uses]
        return True

    def copy(self, at: _At) -> bool:
        """Units come from where they were; those that no output has are left behind."""
        carried, given = self.carried(at), self.given(at)
        if not given:
            return not at.fixed
        return bool(carried or at.fixed) and self._through(at, carried, given)

    def sum(self, at: _At) -> bool:
        """All that is summed has the units."""
        carried, given = self.carried(at), self.given(at)
        return bool(given) and not set(at.operands) - set(carried) and self._through(at, carried, given)

    def scale(self, at: _At) -> bool:
        carried, given = self.carried(at), self.given(at)
        if (
            len(carried) != 1
            or len(given) != 1
            or at.fixed
            or (at.node.op == "Div" and at.node.inputs[0] != carried[0])
        ):
            return False
        return self._through(at, carried, given)

    def product(self, at: _At) -> bool:
        """Of matrices: with the units on an axis that stays, or on the one that is summed over."""
        carried, given = self.carried(at), self.given(at)
        if at.fixed:
            return False
        if len(carried) == 1 and len(given) == 1:
            return self._through(at, carried, given)
        if len(carried) == 2 and not given:
            self.sides.pair(self.tensors[carried[0]], self.tensors[carried[1]], 1)
            self.products.append((carried[0], carried[1]))
            return True
        return False

    def _through(self, at: _At, carried: list[str], given: list[str]) -> bool:
        self.sides.through([self.tensors[x] for x in carried], [self.tensors[x] for x in given])
        self.follow += [(use, False, self.tensors[given[0]]) for use in at.uses]
        return True


def lines_of(classes: Ids, block: Ids) -> NDArray[np.int64] | None:
    """Positions [copies, n] of the classes [n, k] of a block, in order; None where some of a column are missing, or rarer."""
    found = []
    for column in block.T:
        order = np.argsort(column)
        places = order[np.searchsorted(column, classes, sorter=order).clip(max=column.size - 1)]
        chosen = np.flatnonzero(column[places] == classes)
        counts = np.bincount(places[chosen], minlength=column.size)
        if (counts != counts[0]).any():
            return None
        by_place = chosen[np.argsort(places[chosen], kind="stable")]
        found.append(by_place.reshape(column.size, -1).T)
    return np.concatenate(found)


class _Sides:
    """Which lines are mixed by T, and which by its inverse: those that are multiplied with each other are unlike."""

    def __init__(self) -> None:
        self.parent: dict[int, tuple[int, int]] = {}
        self.contradict = False

    def _root(self, mark: int) -> tuple[int, int]:
        side = 0
        while self.parent.setdefault(mark, (mark, 0))[0] != mark:
            mark, more = self.parent[mark]
            side ^= more
        return mark, side

    def of(self, tensor: Carried) -> list[int]:
        return [self._root(int(m))[1] for m in tensor.marks]

    def through(self, inputs: Sequence[Carried], outputs: Sequence[Carried]) -> None:
        """An operator that passes lines on. Those that keep their units are told by them, others by their order."""
        known = {int(m) for x in inputs for m in x.marks}
        for other in inputs[1:]:
            self.pair(inputs[0], other)
        for out in outputs:
            if inputs and not {int(m) for m in out.marks} <= known:
                self.pair(inputs[0], out)

    def pair(self, a: Carried, b: Carried, apart: int = 0) -> None:
        """Line by line; where there are more in one than in the other, all with all."""
        lines = (
            zip(a.marks, b.marks, strict=True)
            if len(a.marks) == len(b.marks)
            else ((x, y) for x in a.marks for y in b.marks)
        )
        for x, y in lines:
            (first, p), (second, q) = self._root(int(x)), self._root(int(y))
            if first == second:
                self.contradict |= p ^ q != apart
            else:
                self.parent[second] = (first, p ^ q ^ apart)
