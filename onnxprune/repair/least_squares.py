"""Repair without training: every layer is fitted again to what the original would have said, on the pruned model's own inputs.

In graph order, layer by layer, with X the inputs that the pruned (and so far repaired) model makes and Y the original's outputs
of the same layer at the same positions (the channels that stayed):

    W = argmin |Y - X W - b|^2 + lambda |W - W0|^2        W0: the sliced weights; the bias is free

Where the layer ends in an Add, Y also takes what the other operand is still missing; where layers behind it were bypassed
(`cut/bypass.py`), what they added. lambda is chosen on held-out samples, and
the layer keeps its fit only if that beats the sliced weights there. (He et al. 2017, Channel
Pruning, equation 3, without its selection; ridge towards the weights.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import numpy as np
import onnx
from onnx import helper

from onnxprune import ops
from onnxprune.calibrate import bodies
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.moments import Moments, Waiting
from onnxprune.calibrate.pairing import Pairing
from onnxprune.calibrate.positions import allotted, pick
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.calibrate.targets import Targets
from onnxprune.calibrate.units import Unit, units_of
from onnxprune.cut.bypass import Bypass
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis, Shapes, compress
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array
from onnxprune.model.bodies import guarded, open_bodies, watching
from onnxprune.model.branches import every_graph
from onnxprune.model.patch import shared, with_constants
from onnxprune.model.routing import flatten, key_of
from onnxprune.ops import failures
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.layers import find_layers
from onnxprune.ops.linear import Floats
from onnxprune.repair.fits import Fit, Repair
from onnxprune.repair.pool import Pool, Regression, downhill, error, variance

ROUNDING = 1e-6  # of a layer's variance: a smaller gain is rounding, which differs from machine to machine
CAP = 5000


@dataclass(frozen=True)
class Repaired:
    """The model with its layers fitted, and what that did to each."""

    model: onnx.ModelProto
    repair: Repair


def compensate(
    analysis: Analysis,
    removed: Bools,
    pruned: onnx.ModelProto,
    calibration: Calibration,
    recover: str = "lsq",
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
    bypasses: Sequence[Bypass] = (),
) -> Repaired:
    """recover: `lsq` fits weights and biases, `bias` only biases. bypasses: those that `pruned` has against the original."""
    run = _Repairs(analysis, removed, pruned, calibration, recover, seed, bypasses)
    fits: list[Fit] = []
    units = units_of(run.layers, run.new)
    for k, unit in enumerate(units):
        fit = run.repair(unit)
        if fit is not None:
            fits.append(fit)
        progress((k + 1) / len(units))
    run.mirror(pruned)
    made = Repair(recover, tuple(fits), tuple(run.changes), unpaired=tuple(run.unpaired))
    return Repaired(with_constants(pruned, run.changes), made)


@dataclass(frozen=True)
class _Lack:
    """(old - less) / scale is missing: both of the original, or `less` as it is `now`, in the pruned model."""

    old: str
    less: str
    now: bool
    scale: Array


class _Repairs:
    def __init__(
        self,
        analysis: Analysis,
        removed: Bools,
        pruned: onnx.ModelProto,
        calibration: Calibration,
        recover: str,
        seed: int,
        bypasses: Sequence[Bypass],
    ) -> None:
        self.analysis, self.recover, self.seed = analysis, recover, seed
        self.gone = analysis.solution.of_units(removed)
        shapes = Shapes(analysis, self.gone)
        judged = calibration.judged
        samples = [judged.fed(feeds) for feeds in calibration.samples.feeds]
        self.samples = calibration.samples
        flat, routing = flatten(pruned, calibration.routing.routes)
        self.flat = judged.led(open_bodies(flat))
        self.uses = Counter(name for graph in every_graph(self.flat.graph) for n in graph.node for name in n.input)
        given, wanted = (
            bodies.inputs(calibration.layers, calibration.constants),
            bodies.outputs(calibration.layers, calibration.constants),
        )
        watched = watching(self.flat, given), watching(judged.led(calibration.flat), wanted)
        self.new = Stepwise(analysis.model.beside(watched[0]), samples, guarded(routing, given))
        self.old: Stepwise | Targets = Stepwise(
            analysis.model.beside(watched[1]),
            samples,
            guarded(calibration.routing, wanted),
            recall=calibration.recall,
        )
        if (finer := calibration.finer) is not None:
            self.old = Targets(
                self.old, Stepwise(analysis.model.beside(finer.flat), samples, finer.routing), finer.names
            )

        def shape(key: str) -> tuple[int, ...] | None:
            if self.new.is_constant(key):
                return tuple(self.new.constant(key).shape)
            return shapes.new(key) if key in analysis.observation.shapes else None

        found = find_layers(self.flat, shape, self.new.is_plain, self.new.constant)
        known = {x.key for x in calibration.layers}
        self.layers = [x for x in found if x.key in known and not self.new.is_constant(x.x)]
        self.pairing = Pairing(self.new, self.old, self.layers)
        self.unpaired: list[str] = []
        self.changes: dict[tuple[str, int], Array] = {}
        self.outputs = {o.name for o in self.flat.graph.output}
        self.readers = self.new.readers()
        self.bypassed = {b.tensor: b.by for b in bypasses}
        self.pending = {x.node for x in self.layers}
        if bypasses:
            self.layers = [x for x in self.layers if removed.any() or self._is_behind(x)]
            self.old.keep(x.gives for x in self.layers)  # what was bypassed is asked for before what lies within
        self.pending = {x.node for x in self.layers}

    def _is_behind(self, layer: LinearLayer) -> bool:
        """Does a layer read, or lead up to, something that was bypassed? Others compute what they did."""
        makers = {self.new.maker[t] for t in self.bypassed if t in self.new.maker}
        lacks = self._lacks(layer)
        read = [layer.x, *(x.less for x in lacks if x.now)]
        return any(not x.now for x in lacks) or any(makers & self.new.before(t) for t in read)

    def repair(self, unit: Unit) -> Fit | None:
        """Fit the layers that read one weight; every layer before them has been."""
        layer = unit[0]
        linear = layer.linear
        weight = self.new.constant(layer.w)
        w = linear.matrix(weight.astype(np.float64))
        pools = self._pools(unit, w)
        self.pending -= {x.node for x in unit}
        for pool in pools:
            if not pool.train.count:
                self.unpaired += [x.key for x in pool.layers if self.pairing.is_picked(x.x)]
        seen = [p for p in pools if p.train.count]
        if not seen or not all(np.isfinite(p.train.xx).all() and np.isfinite(p.train.xy).all() for p in seen):
            return None
        before = error(seen, w, [p.bias for p in seen])
        scale = max(variance(seen), 1e-30)
        best: tuple[float, float | None, Floats] = (before, None, w)
        is_own = len(unit) > 1 or (self.uses[layer.w] if layer.loop else len(self.readers.get(layer.w, []))) == 1
        refit = self.recover == "lsq" and is_own and w.shape[1] <= CAP
        if any(p.is_free for p in seen):
            best = min(best, (error(seen, w, [p.bias_for(w) for p in seen]), np.inf, w), key=lambda x: x[0])
        if refit:
            regression = Regression(seen, w)

            def trial(ridge: float) -> tuple[float, float | None, Floats]:
                fitted = regression(ridge)
                read = self._as_read(layer, fitted)
                return error(seen, read, [p.bias_for(read) for p in seen]), ridge, fitted

            best = min(best, downhill(trial, lambda x: x[0]), key=lambda x: x[0])
        after, chosen, w = best
        if chosen is None or before - after <= ROUNDING * scale:
            return Fit(layer.key, before / scale, before / scale, None)
        read = self._as_read(layer, w)
        for pool in seen:
            if pool.is_free:
                for x in pool.layers:
                    self._set_bias(x, pool.bias_for(read), weight.dtype)
        if np.isfinite(chosen):
            for x in unit:
                self._set(x, x.key, x.linear.w, x.linear.kernel(w), weight.dtype, len(unit))
        return Fit(layer.key, before / scale, after / scale, chosen)

    def _pools(self, unit: Unit, w: Floats) -> list[Pool]:
        """The layers of a unit with what they see, those with one bias together."""
        nodes = {x.node for x in unit}
        pools: dict[str, Pool] = {}
        for x in unit:
            # not those of branches that use the same weights in another order
            late = len(unit) > 1 and self.new.before(x.x, self.pending.__contains__) & (self.pending - nodes)
            train, held = (Moments.empty(*w.shape), Moments.empty(*w.shape)) if late else self._moments(x, w)
            pool = pools.get(x.b or x.key)
            if pool is None:
                is_free = x.linear.b is not None or x.adder is not None
                pools[x.b or x.key] = Pool([x], self._bias(x, w), is_free, train, held)
            else:
                pool.layers.append(x)
                pools[x.b or x.key] = replace(pool, train=pool.train + train, held=pool.held + held)
        return [p if p.held.count else replace(p, held=p.train) for p in pools.values()]

    def mirror(self, pruned: onnx.ModelProto) -> None:
        """What was fitted in branches that samples take goes for others that read the same constant: it stays one."""
        nodes = {key_of(n): n for n in self.flat.graph.node}
        for constant in shared(pruned):
            mine = [place for place in constant.readers if place in self.changes]
            others = [place for place in constant.readers if place not in mine]
            if any(key not in nodes for key, _ in mine) or any(key in nodes or not key for key, _ in others):
                continue
            if not mine:
                continue
            values = [self.changes[place] for place in mine]
            name = nodes[mine[0][0]].input[mine[0][1]]
            if len(self.readers.get(name, [])) == len(mine) and all(np.array_equal(values[0], v) for v in values):
                self.changes.update((place, values[0]) for place in others)

    # -- what is fitted to what

    def _moments(self, layer: LinearLayer, w: Floats) -> tuple[Moments, Moments]:
        """Of the layer's inputs in the pruned model and its wanted outputs: fitted samples, held-out samples."""
        linear = layer.linear
        lacks = self._lacks(layer)
        missing = zip(*(self._missing(x) for x in lacks), strict=True) if lacks else repeat(())
        parts, waiting = [Moments.empty(*w.shape), Moments.empty(*w.shape)], Waiting()
        portions = self.samples.portions(self.new.reaching(layer.node))
        count = allotted(w.shape[1], w.shape[0], max(1, len(portions)))
        rows = self.pairing.rows(layer)
        samples = zip(self.new.values(layer.reads), self.old.values(layer.gives), missing, rows, strict=False)
        for k, (x, y, lack, same) in enumerate(samples):
            if x is None or y is None:
                continue
            most, place = -(-count // bodies.steps_in(layer, x)), self.samples.place(k)
            for step, (read, full) in enumerate(bodies.by_step(layer, x, y)):
                y = compress(full, self.analysis.maps_at(layer.y, full.shape), self.gone)
                for part in lack:
                    y = y if part is None else y + part.astype(y.dtype)
                shape, mine, theirs = same.positions(layer, read, y)
                key = (self.seed, layer.node, place.portion, *((step,) if layer.loop else ()))
                chosen = pick(mine.size, most, key, place)
                into = parts[self.samples.held[k]]
                into.unfold(linear, read, shape, mine[chosen], y, theirs[chosen], waiting=waiting)
        waiting.finish()
        self.new.release(layer.reads)
        self.old.release(layer.gives)
        later = {x.y for x in self.layers if x.node in self.pending and x.node != layer.node}
        for done in lacks:
            for name in {done.old, done.less} - later:
                self.old.release(name)
            if done.now:
                self.new.release(done.less)
        return parts[0], parts[1]

    def _missing(self, lack: _Lack) -> Iterator[Array | None]:
        """What a layer's output should have more, sample by sample, in the layer's own scale."""
        have = self.new.values(lack.less) if lack.now else self.old.values(lack.less)
        for wanted, there in zip(self.old.values(lack.old), have, strict=True):
            if wanted is None or there is None:
                yield None
                continue
            less = there if lack.now else compress(there, self.analysis.maps_at(lack.less, there.shape), self.gone)
            maps = self.analysis.maps_at(lack.old, wanted.shape)
            yield (compress(wanted, maps, self.gone) - less) / lack.scale

    def _lacks(self, layer: LinearLayer) -> list[_Lack]:
        """What the tensors that a layer's output ends in are missing: an Add's other operand, and what was bypassed."""
        nodes, tensor = self.new.nodes, layer.y
        scale: Array = np.ones(())
        found: list[_Lack] = []
        if self.pairing.is_picked(layer.y):  # its rows may be others than those of what is missing
            return found
        for _ in range(6):
            readers = self.readers.get(tensor, [])
            if len(readers) != 1 or tensor in self.outputs:
                break
            node = nodes[readers[0]]
            rule = ops.rule_for(node.op_type, node.domain)
            constants = [n for n in node.input[1:] if n]
            if self.bypassed.get(node.output[0]) == tensor:
                if self.old.can(tensor) and self.old.can(node.output[0]):
                    found.append(_Lack(node.output[0], tensor, False, scale.astype(np.float32)))
                tensor = node.output[0]
            elif rule.step is not None and len(node.output) == 1 and all(self.new.is_constant(n) for n in constants):
                attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                values = [self.new.constant(n).astype(np.float64) for n in constants]
                step = failures.attempt(rule, "step", failures.label(node), partial(rule.step, attrs, values), None)
                if step is None:
                    break
                step = np.where(np.abs(step) < 1e-2 * np.abs(step).max(initial=0.0), np.inf, step)
                rank = len(self.analysis.observation.shapes[layer.y])
                scale = scale * (step.reshape(-1, *[1] * (rank - 2)) if step.ndim else step)
                tensor = node.output[0]
            elif rule.adds and len(node.input) == 2:
                other = node.input[1] if node.input[0] == tensor else node.input[0]
                if not self.new.is_constant(other):
                    if any(x.now for x in found) or not self._is_ready(layer, other, tensor):
                        break
                    found.append(_Lack(other, other, True, scale.astype(np.float32)))
                    if not self.bypassed:
                        break
                tensor = node.output[0]
            else:
                break
        return found

    def _is_ready(self, layer: LinearLayer, other: str, mine: str) -> bool:
        """Can the other operand be had without this layer and layers that are still to be repaired?"""
        shapes = self.analysis.observation.shapes
        if (
            self.pairing.is_picked(other)
            or other not in self.old.maker
            or shapes.get(other) != shapes.get(mine)
            or not self.old.can(other)
        ):
            return False
        return not self.pending & self.new.before(other, self.pending.__contains__)

    # -- reading and writing the layer

    def _bias(self, layer: LinearLayer, w: Floats) -> Floats:
        if not layer.b or layer.linear.b is None:  # what an Add behind the layer adds is no part of its output
            return np.zeros((w.shape[0], w.shape[2]))
        found = layer.linear.bias(self.new.constant(layer.b).astype(np.float64))
        assert found is not None
        return found

    def _set_bias(self, layer: LinearLayer, bias: Floats, dtype: np.dtype[np.generic]) -> None:
        if layer.adder is None:
            assert layer.linear.b is not None
            dtype = self.new.constant(layer.b).dtype if layer.b else dtype
            self._set(layer, layer.key, layer.linear.b, layer.linear.stored_bias(bias), dtype)
            return
        key, i = layer.adder
        old = self.new.constant(layer.b)
        self._set(layer, key, i, old + bias.reshape(-1).astype(old.dtype), old.dtype)

    def _as_read(self, layer: LinearLayer, w: Floats) -> Floats:
        """The weights as the layer reads them: rounded, where they are kept in codes."""
        kernel = layer.linear.kernel(w)
        read = kernel if layer.linear.is_rounded else self.new.as_read(layer.w, kernel)
        return w if read is None else layer.linear.matrix(read.astype(np.float64))

    def _set(
        self, layer: LinearLayer, key: str, i: int, value: Array, dtype: np.dtype[np.generic], readers: int = 1
    ) -> None:
        """Give a node of the layer, by its key, another constant. readers: nodes that get the same value at this input."""
        node = layer.node if layer.loop else self.new.maker[key]
        inputs = self.new.nodes[node].input
        tensor = inputs[i] if not layer.loop and i < len(inputs) else ""
        coded = self.new.encoded(tensor, value)
        if coded is not None and len(self.readers[tensor]) in (1, readers):
            node, value = coded
            key, i, dtype = self.new.nodes[node].output[0], 0, value.dtype
        value = np.ascontiguousarray(value.astype(dtype))
        if not np.isfinite(value).all():
            raise BadInputError(f"The repair of '{key}' is not finite; use --recover bias or none.")
        self.changes[key, i] = value
        self.new.replace(node, {i: value}, key if layer.loop else "")
