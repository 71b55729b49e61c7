"""A piece of a model as a model of its own, at the sizes that a removal leaves, to be timed.

It has the nodes that the rewritten model would have there, with its weights (`cut/rewrite.py`), and inputs of fixed shapes. Two pieces
of one *form* (the same operators, attributes and shapes) take equally long, whatever their weights and names are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.choose.pieces import Piece, Sizes
from onnxprune.cut.rewrite import Part, Rewriter
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis, Shapes
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.element_types import kinds
from onnxprune.model.graph import name_of
from onnxprune.model.loaded import Model

FEW = 4
"""Floats of a constant that may decide what is fused (the numbers of a GELU); of larger ones only shape and type count."""

IDS = 1024
"""Whole numbers of a constant that may be sizes, axes or positions."""


@dataclass(frozen=True)
class SmallGraph:
    """model: of one piece. feeds: for its inputs. form: digest of all that its time may depend on."""

    model: Model
    feeds: Feeds
    form: str


class Cutter:
    """Makes small graphs of one analysed model."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.sizes = analysis, Sizes(analysis)

    @cached_property
    def _rewriter(self) -> Rewriter:
        return Rewriter(self.analysis)

    @cached_property
    def _kinds(self) -> dict[str, str]:
        return kinds(self.analysis.view)

    def __call__(self, piece: Piece, removed: Bools) -> SmallGraph:
        """Raises `BadInputError` where something that it reads was not observed."""
        wanted = frozenset((*piece.nodes, *piece.helpers))
        part = self._rewriter.part(removed, wanted)
        keys = {name_of(x): x for n in self.analysis.view.graph.walk() if n.key in wanted for x in n.inputs if x}
        shapes = self.sizes.shapes(removed)
        made = {o for n in part.nodes for o in n.output}
        read = dict.fromkeys(x for n in part.nodes for x in n.input if x)
        feeds, inputs = {}, []
        for name in read:
            if name in made or name in part.constants:
                continue
            value = self._value(keys.get(name, name), shapes)
            feeds[name] = value
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
        inside = {x for n in part.nodes for x in n.input}
        outputs = [
            o for n in part.nodes for o in n.output if o and (o not in inside or self._is_read_outside(o, keys, wanted))
        ]
        proto = self.analysis.model.proto
        graph = helper.make_graph(
            part.nodes,
            "piece",
            inputs,
            [helper.make_empty_tensor_value_info(o) for o in dict.fromkeys(outputs)],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in part.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=max(4, proto.ir_version))
        return SmallGraph(Model(model, self.analysis.model.folder), feeds, _form(part, feeds, outputs, proto))

    def _value(self, key: str, shapes: Shapes) -> Array:
        """What an input is fed: random numbers; whole numbers as they were observed, or 0."""
        observed = self.analysis.observation
        try:
            shape = shapes.new(key)
        except KeyError:
            raise BadInputError(f"The tensor {key!r} was not observed.") from None
        known = observed.values.get(key)
        kind = self._kinds.get(key, "")
        fed = self.analysis.feeds[0].get(key)
        if known is None and fed is not None and fed.shape == tuple(shape):
            known = fed
        if known is not None and known.dtype.kind in "iub" and known.shape == tuple(shape):
            return known
        if known is not None and not kind:
            dtype = known.dtype
        else:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value((kind or "float").upper())))
        if dtype.kind in "iub":
            return np.zeros(shape, dtype)
        if dtype.kind not in "fV":
            raise BadInputError(f"The tensor {key!r} holds no numbers.")
        return np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)

    def _is_read_outside(self, name: str, keys: Mapping[str, str], wanted: frozenset[str]) -> bool:
        key = keys.get(name, name)
        return key in self._results or bool(self._readers.get(key, frozenset()) - wanted)

    @cached_property
    def _readers(self) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for node in self.analysis.view.graph.walk():
            for x in node.inputs:
                found.setdefault(x, set()).add(node.key)
        return {x: frozenset(nodes) for x, nodes in found.items()}

    @cached_property
    def _results(self) -> frozenset[str]:
        graph = self.analysis.view.graph
        held = (o for n in graph.walk() for sub in n.subgraphs.values() for o in sub.outputs)
        return frozenset((*graph.outputs, *held))


def _form(part: Part, feeds: Feeds, outputs: list[str], proto: onnx.ModelProto) -> str:
    """A digest of nodes without names, of shapes and types, and of the constants' values where these may matter."""
    number: dict[str, str] = {"": ""}
    digest = hashlib.sha256()

    def told(name: str) -> str:
        return number.setdefault(name, str(len(number)))

    for node in part.nodes:
        bare = NodeProto()
        bare.CopyFrom(node)
        bare.name = bare.doc_string = ""
        del bare.metadata_props[:]
        for names in (bare.input, bare.output):
            changed = [told(x) for x in names]
            del names[:]
            names.extend(changed)
        attributes = sorted(bare.attribute, key=lambda a: a.name)
        del bare.attribute[:]
        bare.attribute.extend(attributes)
        digest.update(bare.SerializeToString(deterministic=True))
    for name, array in sorted(part.constants.items(), key=lambda x: told(x[0])):
        matters = array.size <= (FEW if array.dtype.kind in "fV" else IDS)
        digest.update(f"{told(name)} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes() if matters else b"")
    for name, value in feeds.items():
        digest.update(f"{told(name)} {value.dtype} {value.shape};".encode())
    digest.update(" ".join(told(o) for o in outputs).encode())
    digest.update(" ".join(sorted(f"{o.domain}:{o.version}" for o in proto.opset_import)).encode())
    return digest.hexdigest()
