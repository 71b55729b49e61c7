"""By which tensors a model is judged: its outputs, or, where those say little, the last tensors that they follow from.

An output that holds floats and whose size follows from the sizes of the inputs is compared directly. What non-maximum suppression
selects, a label, a length or a text is none: whether one box more is selected says little about how far the boxes moved. There the
graph is followed upwards to the nearest tensors of floats that are of one size in the original and the pruned model (the boxes and
scores before the suppression, the logits before an ArgMax), and these are compared instead. Labels that follow from no such tensor
are compared themselves: the share of them that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from onnxprune.calibrate.damage import Metric, Outputs
from onnxprune.calibrate.depends import dependent
from onnxprune.calibrate.leading import Decision, Leader, decisions, has_weights_behind
from onnxprune.calibrate.stepwise import read_by
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.branches import showing
from onnxprune.model.loaded import Model
from onnxprune.runtime import Session
from onnxprune.runtime.values import as_array

FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)")
NO_TENSOR = "a sequence or map"
Fits = Callable[[str], bool]


@dataclass(frozen=True)
class Judged:
    """tensors: what a model is judged by; outputs: all outputs of the model.

    follows: by output that is not judged itself, why, and the tensors that are judged in its place; none where there are none.
    decisions: what decides sizes by values; leader: the model that makes these decisions for all (`calibrate/leading.py`).
    """

    tensors: tuple[str, ...]
    outputs: tuple[str, ...]
    follows: Mapping[str, tuple[str, tuple[str, ...]]]
    decisions: tuple[Decision, ...] = ()
    leader: Leader | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """All that is read of a model: the tensors that it is judged by, then its other outputs."""
        return tuple(dict.fromkeys((*self.tensors, *self.outputs)))

    @property
    def decides(self) -> tuple[str, ...]:
        """Tensors that the leader gives to all, see `fed`."""
        return () if self.leader is None else self.leader.tensors

    def by_tensors(self, metric: Metric) -> Metric:
        """A metric of the tensors that the model is judged by, as one of all `names`."""
        n = len(self.tensors)
        return lambda reference, found: metric([r[:n] for r in reference], [f[:n] for f in found])

    def by_outputs(self, metric: Metric) -> Metric:
        """A metric of the model's outputs, as one of all `names`."""
        return lambda reference, found: metric(self.of_outputs(reference), self.of_outputs(found))

    def of_outputs(self, rows: Outputs) -> Outputs:
        """What the model's outputs gave, of what all `names` gave."""
        at = [self.names.index(o) for o in self.outputs]
        return [[row[k] for k in at] for row in rows]

    def read(self, values: Sequence[Any]) -> list[Array]:
        """What a model gave for `names`, each as one array: of numbers, where it is no tensor of texts."""
        return [v if isinstance(v, np.ndarray) and v.dtype.kind == "O" else as_array(v) for v in values]

    def session(
        self, model: Model, what: str = "the model", threads: int = 0, optimized: bool = True
    ) -> Callable[[Feeds], list[Array]]:
        """Runs a model and gives all `names`, see `read`."""
        shown = model.beside(showing(self.led(model.proto), self.names))
        session = Session(shown, optimized=optimized, threads=threads, what=what)
        return lambda feeds: self.read(session.run_whole(self.fed(feeds), self.names))

    def led(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """A model that takes the leader's decisions, where there is one."""
        return proto if self.leader is None else self.leader.led(proto)

    def fed(self, feeds: Feeds) -> Feeds:
        """What such a model is fed."""
        return feeds if self.leader is None else self.leader.fed(feeds)


def judged_by(
    model: Model, fits: Fits, chosen: Sequence[str] = (), leads: bool = False, states: Sequence[str] = ()
) -> Judged:
    """What a model is judged by. fits: is a tensor there, and of the same size, in the models to be compared? chosen: `--judge`.

    leads: the model may decide for the others where values decide sizes, and layers with weights come behind.
    states: outputs that the next step is fed and that may shrink with that input (`--free`): what they are worth shows in the other
    outputs, so they are judged only where there are no others.
    Raises `BadInputError` for a chosen tensor that the graph does not make, or that does not fit.
    """
    graph = model.proto.graph
    outputs = tuple(o.name for o in graph.output)
    if chosen:
        made = {o for node in graph.node for o in node.output}
        for name in chosen:
            if name not in made:
                raise BadInputError(
                    f"--judge '{name}' is no tensor that a node of the graph makes; see the names with a viewer."
                )
            if name not in outputs and not fits(name):
                raise BadInputError(
                    f"--judge '{name}' loses positions when the model is pruned; name a tensor that keeps its size."
                )
        others = {o: ("--judge names others", tuple(chosen)) for o in outputs if o not in chosen}
        return Judged(tuple(dict.fromkeys(chosen)), outputs, others)
    found = _Walk(model, fits, leads).judged(outputs)
    left = tuple(t for t in found.tensors if t not in states)
    if not left or len(left) == len(found.tensors):
        return found
    why: dict[str, tuple[str, tuple[str, ...]]] = {
        o: ("it is a state that may shrink (--free)", ()) for o in found.tensors if o in states
    }
    return replace(found, tensors=left, follows={**found.follows, **why})


class _Walk:
    """Which tensors depend on the values of the inputs, and whose sizes do."""

    def __init__(self, model: Model, fits: Fits, leads: bool) -> None:
        graph = model.proto.graph
        self.model, self.fits = model, fits
        self.maker = {o: node for node in graph.node for o in node.output if o}
        constants = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        self.values, self.sizes = dependent(graph.node, constants.__contains__)
        self.types: dict[str, str] | None = None
        self.decisions: list[Decision] = []
        if leads and has_weights_behind(graph.node, self.values, self.sizes):
            self.decisions = decisions(graph.node, self.values)

    def judged(self, outputs: tuple[str, ...]) -> Judged:
        declared = {o.name: _declared(o) for o in self.model.proto.graph.output}
        deciding = {self.sizes[o] for o in outputs if o in self.sizes}
        sources = [n for d in self.decisions if d.node in deciding for n in d.sources]
        self.decisions.sort(key=lambda d: d.node not in deciding)
        if self.decisions:  # all sizes are the leader's
            self.sizes.clear()
        follows = {
            o: (self._why(o, declared[o]), self._before(o)) for o in outputs if not self._is_direct(o, declared[o])
        }
        labels = [o for o, (_, before) in follows.items() if not before and o not in self.sizes]
        follows = {o: found for o, found in follows.items() if o not in labels}
        more = [t for _, tensors in follows.values() for t in tensors]
        more += [n for n in dict.fromkeys(sources) if self._type(n) in FLOATS and self.fits(n)]
        tensors = tuple(dict.fromkeys((*(o for o in outputs if o not in follows), *more)))
        if not self.decisions:
            return Judged(tensors, outputs, follows)
        leader = Leader(self.model, tuple(dict.fromkeys(d.tensor for d in self.decisions)))
        return Judged(tensors, outputs, follows, tuple(self.decisions), leader)

    def _is_direct(self, output: str, declared: str) -> bool:
        return output not in self.sizes and (declared or self._type(output)) in FLOATS

    def _why(self, output: str, declared: str) -> str:
        if declared == NO_TENSOR:
            return "it is no tensor"
        if output in self.sizes:
            return f"its size depends on values ({self.sizes[output]})"
        return f"it holds no floats ({declared or self._type(output) or 'not a tensor'})"

    def _before(self, output: str) -> tuple[str, ...]:
        """The nearest tensors upwards that can be judged."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        stack = list(read_by(self.maker[output])) if output in self.maker else []
        while stack:
            name = stack.pop()
            if name in seen or name not in self.maker or name not in self.values:
                continue
            seen.add(name)
            if name not in self.sizes and self._type(name) in FLOATS and self.fits(name):
                found[name] = None
            else:
                stack += read_by(self.maker[name])
        order = {name: k for k, name in enumerate(self.maker)}
        return tuple(sorted((n for n in found if not self._follows(n, found)), key=order.__getitem__))

    def _follows(self, name: str, others: Container[str]) -> bool:
        """Is it computed from these alone?"""
        stack, seen = list(read_by(self.maker[name])), {name}
        while stack:
            read = stack.pop()
            if read in seen or read not in self.values or read in others:
                continue
            if read not in self.maker:
                return False
            seen.add(read)
            stack += read_by(self.maker[read])
        return True

    def _type(self, name: str) -> str:
        """As ONNX Runtime names types."""
        if self.types is None:
            try:
                session = Session(self.model.beside(showing(self.model.proto, self.maker)))
            except BadInputError:  # something in there cannot be an output
                session = Session(self.model)
            self.types = session.output_types
        return self.types.get(name, "")


def _declared(output: onnx.ValueInfoProto) -> str:
    """The declared type of a tensor, as ONNX Runtime names it."""
    if (
        output.type.HasField("sequence_type")
        or output.type.HasField("map_type")
        or output.type.HasField("optional_type")
    ):
        return NO_TENSOR
    number = output.type.tensor_type.elem_type
    known = {1: FLOATS[0], 11: FLOATS[1], 10: FLOATS[2], 16: FLOATS[3]}
    return known.get(number, f"tensor({onnx.TensorProto.DataType.Name(number).lower()})" if number else "")
