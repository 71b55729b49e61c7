"""Store weights as `sparse_initializer`: values that are not zero, with their positions (ONNX IR, SparseTensorProto).

A weight of 4 bytes takes 8 more for its position in the flattened tensor (COO, linear indices), so this is smaller above about two
thirds of zeros. ONNX Runtime makes it dense again when it loads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from onnxprune.model.branches import SEPARATOR, subgraphs
from onnxprune.model.tensors import is_external, sparse_of

WORTH = 0.9  # `auto` stores sparse where the file shrinks to this share or less
FIRST_IR = 6  # the first version of the format that has sparse initializers


def stored(
    proto: ModelProto, tensors: set[str], how: str, loads: Callable[[ModelProto], bool]
) -> tuple[ModelProto, tuple[str, ...]]:
    """A copy with those of `tensors` (keys) sparse that are smaller so and that `loads` accepts, and their keys.

    loads: does ONNX Runtime load the model, and does it compute what the dense one does? how: see `STORES`.
    """
    if how == "dense" or proto.ir_version < FIRST_IR:
        return proto, ()
    chosen = {key for key, graph, tensor in _initializers(proto.graph) if key in tensors and _is_smaller(graph, tensor)}
    result = _with_sparse(proto, chosen)
    if chosen and not loads(result):
        kept: set[str] = set()
        for key in sorted(chosen):
            if loads(_with_sparse(proto, kept | {key})):
                kept.add(key)
        chosen, result = kept, _with_sparse(proto, kept)
    if not chosen or (how == "auto" and result.ByteSize() > WORTH * proto.ByteSize()):
        return proto, ()
    return result, tuple(sorted(chosen))


def _initializers(graph: GraphProto, path: str = "") -> Iterator[tuple[str, GraphProto, TensorProto]]:
    """Key, graph and tensor of every initializer, those of subgraphs included."""
    for tensor in graph.initializer:
        yield path + tensor.name, graph, tensor
    for k, node in enumerate(graph.node):
        first = next((o for o in node.output if o), f"#{k}")
        for attribute, sub in subgraphs(node):
            yield from _initializers(sub, f"{path}{first}.{attribute}{SEPARATOR}")


def _is_smaller(graph: GraphProto, tensor: TensorProto) -> bool:
    if is_external(tensor) or any(i.name == tensor.name for i in graph.input):
        return False
    return bool(sparse_of(tensor.name, numpy_helper.to_array(tensor)).ByteSize() < tensor.ByteSize())


def _with_sparse(proto: ModelProto, chosen: set[str]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    for key, graph, tensor in list(_initializers(copy.graph)):
        if key in chosen:
            graph.sparse_initializer.append(sparse_of(tensor.name, numpy_helper.to_array(tensor)))
            graph.initializer.remove(tensor)
    return copy
