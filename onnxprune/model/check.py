"""Is this model a graph that one can work on? Everything the other stages take for granted is checked here, once.

`onnx.checker` is not used: it wants all weights serialized again, knows only operators of the standard (a model
with ONNX Runtime's own fused operators would be refused), and forbids what runs everywhere (an inner name that
hides an outer one, nodes out of order). The rules that protect us are few:

- names are text; in one graph each tensor is defined once, and what a node reads is defined in its graph or around it;
- nodes form no cycle (`check` returns the order that puts every node after its inputs);
- a node of a known operator has the inputs and attributes that the operator's schema asks for;
- a tensor has exactly the bytes that its type and dims need, where it says they are, and no weight is NaN.

All walks are linear in the size of the file; nothing is allocated on the word of a header.
"""

import heapq
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import (
    AttributeProto,
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
)

from onnxprune.errors import BadInputError, UnsupportedModelError, quoted
from onnxprune.model.constants import is_constant
from onnxprune.model.loaded import Model
from onnxprune.model.schema import schema_of
from onnxprune.model.tensors import (
    KNOWN_TYPES,
    TYPED_FIELDS,
    external_region,
    has_nan,
    is_external,
    n_bytes,
    n_entries,
    read,
    shown,
    typed_field,
)

MAX_RANK = 64  # numpy's limit
MAX_NESTING = 32  # graphs within graphs; protobuf itself stops at about as many
MAX_DENSE_ELEMENTS = 1 << 31  # of a sparse tensor, which is made dense when it is read
_MESSAGE_FIELDS: dict[int, Literal["g", "t", "sparse_tensor", "tp"]] = {
    AttributeProto.GRAPH: "g",
    AttributeProto.TENSOR: "t",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}
EXPORT_AGAIN = "export the model again"


@dataclass(frozen=True)
class Checked:
    """What the walk over a model found.

    orders: (graph, indices of its nodes in topological order) for each graph that is not in such an order.
    external_bytes: total length of external tensors; None if there are none.
    """

    orders: list[tuple[GraphProto, list[int]]]
    external_bytes: int | None


def check(model: Model) -> Checked:
    """Raises: BadInputError with one sentence that says what is wrong and where."""
    walk = _Walk(model)
    free = walk.graph(model.proto.graph, 0)
    for name, reader in free.items():
        raise BadInputError(
            f"{reader} reads {quoted(name)}, which no node, input or initializer defines; {EXPORT_AGAIN}."
        )
    return Checked(walk.orders, walk.external_bytes)


class _Walk:
    def __init__(self, model: Model) -> None:
        self.folder = model.folder
        self.versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.proto.opset_import}
        self.orders: list[tuple[GraphProto, list[int]]] = []
        self.external_bytes: int | None = None

    def graph(self, graph: GraphProto, depth: int) -> dict[str, str]:
        """Check one graph; the names that it takes from the graphs around it, each with its first reader."""
        if depth > MAX_NESTING:
            raise UnsupportedModelError(
                f"Graph {quoted(graph.name)} is nested {depth} graphs deep, more than the {MAX_NESTING} that "
                f"onnxprune follows; simplify the model."
            )
        check_texts(graph, f"Graph {quoted(graph.name)}")
        nodes = list(graph.node)
        producer = self._defined(graph, nodes)
        free: dict[str, str] = {}
        needs: list[set[int]] = []
        is_sorted = True
        for index, node in enumerate(nodes):
            label = describe(node)
            reads = dict.fromkeys(node.input, label)
            reads.update(self._node(node, label, depth))
            reads.pop("", None)
            before = set()
            for name, reader in reads.items():
                source = producer.get(name)
                if source is None:
                    free.setdefault(name, reader)
                elif source >= 0:
                    before.add(source)
                    is_sorted = is_sorted and source < index
            needs.append(before)
        if not is_sorted:
            self.orders.append((graph, _topological(nodes, needs)))
        for value in graph.output:
            if value.name not in producer:
                raise BadInputError(
                    f"Output {quoted(value.name)} of graph {quoted(graph.name)} is computed by none of its nodes; "
                    f"{EXPORT_AGAIN}."
                )
        return free

    def _defined(self, graph: GraphProto, nodes: list[NodeProto]) -> dict[str, int]:
        """Name -> index of the node that defines it, or -1 for inputs and initializers. Each name once."""
        producer: dict[str, int] = {}
        for sparse in graph.sparse_initializer:
            self._sparse(sparse, f"Sparse initializer {quoted(sparse.values.name)}")
        for tensor in graph.initializer:
            self._tensor(tensor, f"Initializer {quoted(tensor.name)}", is_weight=True)
        names = [t.name for t in graph.initializer]
        names += [s.values.name for s in graph.sparse_initializer]
        for name in names:
            if name in producer or not name:
                raise _duplicate(name, "initializers", graph)
            producer[name] = -1
        seen: set[str] = set()
        for value in graph.input:
            if value.name in seen or not value.name:
                raise _duplicate(value.name, "inputs", graph)
            seen.add(value.name)
            producer[value.name] = -1
        for kind in ("input", "output", "value_info"):
            for value in getattr(graph, kind):
                _declaration(value, kind)
        for index, node in enumerate(nodes):
            for name in node.output:
                if name in producer and name:
                    raise BadInputError(
                        f"Tensor {quoted(name)} is defined twice, the second time by {describe(node)}; {EXPORT_AGAIN}."
                    )
                if name:
                    producer[name] = index
        return producer

    def _node(self, node: NodeProto, label: str, depth: int) -> dict[str, str]:
        """Check one node; the names that its subgraphs take from outside."""
        check_texts(node, label)
        if not node.op_type:
            raise BadInputError(f"{label} has no operator type; {EXPORT_AGAIN}.")
        free: dict[str, str] = {}
        names = set()
        for attribute in node.attribute:
            where = f"Attribute {quoted(attribute.name)} of {label}"
            check_texts(attribute, where)
            if attribute.name in names or not attribute.name:
                raise BadInputError(f"{where} is given twice or has no name; {EXPORT_AGAIN}.")
            names.add(attribute.name)
            if attribute.ref_attr_name:
                raise BadInputError(f"{where} refers to a function outside any function; {EXPORT_AGAIN}.")
            free.update(self._attribute(attribute, where, depth, is_constant(node)))
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self.versions.get(domain)
        if version is None:
            raise BadInputError(
                f"{label} has the domain {quoted(domain or 'ai.onnx')}, whose opset is not imported; {EXPORT_AGAIN}."
            )
        schema = schema_of(node.op_type, domain, version)
        fault = schema.fault(node) if schema is not None else None
        if fault:
            raise BadInputError(f"{label} {fault}; {EXPORT_AGAIN}.")
        return free

    def _attribute(self, attribute: AttributeProto, where: str, depth: int, is_weight: bool) -> dict[str, str]:
        kind = attribute.type
        field = _MESSAGE_FIELDS.get(kind)
        if field is not None and not attribute.HasField(field):
            raise BadInputError(f"{where} has no value; {EXPORT_AGAIN}.")
        if kind == AttributeProto.GRAPH:
            return self.graph(attribute.g, depth + 1)
        if kind == AttributeProto.TENSOR:
            self._tensor(attribute.t, where, is_weight)
        elif kind == AttributeProto.TENSORS:
            for tensor in attribute.tensors:
                self._inside(tensor, where)
        elif kind == AttributeProto.SPARSE_TENSOR:
            self._sparse(attribute.sparse_tensor, where)
        elif kind == AttributeProto.SPARSE_TENSORS:
            for sparse in attribute.sparse_tensors:
                self._sparse(sparse, where)
        elif kind == AttributeProto.TYPE_PROTO:
            _type(attribute.tp, where)
        elif kind == AttributeProto.TYPE_PROTOS:
            for tp in attribute.type_protos:
                _type(tp, where)
        elif kind == AttributeProto.GRAPHS:
            raise UnsupportedModelError(
                f"{where} is a list of graphs, which no operator of the standard has; export the model without it."
            )
        elif kind == AttributeProto.UNDEFINED:
            raise BadInputError(f"{where} has no known type; {EXPORT_AGAIN}.")
        return {}

    def _tensor(self, tensor: TensorProto, where: str, is_weight: bool = False) -> None:
        """Bytes fit dims and lie where they should; a weight holds no NaN."""
        for text in (tensor.name, tensor.doc_string):
            _text(text, where)
        n = _volume(tensor, where)
        if tensor.data_type not in KNOWN_TYPES:
            raise BadInputError(
                f"{where} has element type {tensor.data_type}, which onnx {onnx.__version__} does not know; "
                "export the model again or upgrade onnx."
            )
        if tensor.HasField("segment"):
            raise UnsupportedModelError(f"{where} is stored in segments, which nothing reads; {EXPORT_AGAIN}.")
        if is_external(tensor):
            if tensor.data_type == TensorProto.STRING:
                raise BadInputError(f"{where} keeps strings as external data, which ONNX forbids; {EXPORT_AGAIN}.")
            self.external_bytes = (self.external_bytes or 0) + external_region(tensor, self.folder).length
        else:
            _stored(tensor, n, where)
        # One NaN alone is a fill value that a graph may use on purpose; among others it is a broken weight.
        if is_weight and n > 1 and has_nan(tensor, self.folder):
            raise BadInputError(f"{where} holds NaN; train or export the model again.")

    def _inside(self, tensor: TensorProto, where: str) -> None:
        """A tensor of a kind that no writer keeps as external data."""
        if is_external(tensor):
            raise UnsupportedModelError(
                f"{where} is kept as external data, which only plain tensors may be; {EXPORT_AGAIN}."
            )
        self._tensor(tensor, where)

    def _sparse(self, sparse: SparseTensorProto, where: str) -> None:
        self._inside(sparse.values, where)
        self._inside(sparse.indices, f"Index list of {where}")
        values, indices = sparse.values, sparse.indices
        size = _volume(sparse, where)
        if size > MAX_DENSE_ELEMENTS:
            raise UnsupportedModelError(f"{where} has {size} elements when dense, too many; store it another way.")
        n = values.dims[0] if len(values.dims) == 1 else -1
        shapes = ([n], [n, len(sparse.dims)])
        fits = indices.data_type == TensorProto.INT64 and list(indices.dims) in shapes
        if fits and n:
            positions = read(indices, self.folder)
            limit = np.array(sparse.dims if positions.ndim == 2 else [size], dtype=np.int64)
            fits = bool(((positions >= 0) & (positions < limit)).all())
        if not fits:
            raise BadInputError(f"{where} has indices that do not fit its values and dims; {EXPORT_AGAIN}.")


def _stored(tensor: TensorProto, n: int, where: str) -> None:
    """Exactly one field of the tensor holds data, of exactly the length that n elements need."""
    field = typed_field(tensor.data_type)
    lengths = {f: length for f in TYPED_FIELDS if (length := len(getattr(tensor, f)))}
    has_raw = tensor.HasField("raw_data")
    if n == 0 and not lengths and not (has_raw and tensor.raw_data):
        return
    shape = f"its dims {shown(tensor.dims)}"
    if not lengths and not has_raw:
        raise BadInputError(f"{where} holds no data although {shape} need some; {EXPORT_AGAIN} with its weights.")
    if len(lengths) + has_raw > 1 or (lengths and field not in lengths):
        raise BadInputError(f"{where} holds data in a field that its type does not use; {EXPORT_AGAIN}.")
    if has_raw:
        have, least = len(tensor.raw_data), n_bytes(tensor.data_type, n)
        if tensor.data_type == TensorProto.STRING or have != least:
            raise BadInputError(f"{where} holds {have} bytes where {shape} need {least}; {EXPORT_AGAIN}.")
    else:
        have = lengths[field]
        least = n_entries(tensor.data_type, n)
        if have != least:
            raise BadInputError(f"{where} holds {have} values where {shape} need {least}; {EXPORT_AGAIN}.")


def _volume(tensor: TensorProto | SparseTensorProto, where: str) -> int:
    dims = tensor.dims
    if len(dims) > MAX_RANK or (len(dims) and min(dims) < 0):
        raise BadInputError(
            f"{where} has dims {shown(dims)}, which are negative or more than {MAX_RANK}; {EXPORT_AGAIN}."
        )
    volume = int(math.prod(dims))
    if math.prod(d for d in dims if d) >= 1 << 62:
        raise BadInputError(f"{where} has dims {shown(dims)}, which no memory holds; {EXPORT_AGAIN}.")
    return volume


def _declaration(value: ValueInfoProto, kind: str) -> None:
    where = f"{kind.replace('_', ' ').capitalize()} {quoted(value.name)}"
    check_texts(value, where)
    _type(value.type, where)


def _type(tp: TypeProto, where: str) -> None:
    """Element types are known and symbolic sizes are text, at any depth of sequences, optionals and maps."""
    for _ in range(MAX_NESTING * 4):
        kind = tp.WhichOneof("value")
        if kind in ("sequence_type", "optional_type"):
            tp = getattr(tp, kind).elem_type
        elif kind == "map_type":
            tp = tp.map_type.value_type
        else:
            break
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return
    tensor = getattr(tp, kind)
    if tensor.elem_type and tensor.elem_type not in KNOWN_TYPES:
        raise BadInputError(
            f"{where} has element type {tensor.elem_type}, which onnx {onnx.__version__} does not "
            "know; export the model again or upgrade onnx."
        )
    for dim in tensor.shape.dim:
        _text(dim.dim_param, where)
        _text(dim.denotation, where)


def check_texts(message: Message, where: str) -> None:
    """Protobuf hands out bytes where a string is not UTF-8; no name may be one."""
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_STRING:
            continue
        for text in (value,) if isinstance(value, str | bytes) else value:
            _text(text, where)


def _text(text: Any, where: str) -> None:
    if isinstance(text, bytes):
        raise BadInputError(
            f"{where} has a name or text that is not UTF-8 ({text[:20]!r}); fetch or export the file again."
        )


def _topological(nodes: list[NodeProto], needs: list[set[int]]) -> list[int]:
    """The order closest to the file's in which every node follows what it reads (Kahn, smallest index first)."""
    consumers: list[list[int]] = [[] for _ in nodes]
    for index, before in enumerate(needs):
        for source in before:
            consumers[source].append(index)
    missing = [len(before) for before in needs]
    ready = [i for i, count in enumerate(missing) if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for consumer in consumers[index]:
            missing[consumer] -= 1
            if not missing[consumer]:
                heapq.heappush(ready, consumer)
    if len(order) < len(nodes):
        index, seen = next(i for i, count in enumerate(missing) if count), set()
        while index not in seen:  # each node that is left waits for another that is left: walk until one repeats
            seen.add(index)
            index = next(i for i in sorted(needs[index]) if missing[i])
        raise BadInputError(
            f"The graph has a cycle through {describe(nodes[index])}, which needs its own output; {EXPORT_AGAIN}."
        )
    return order


def describe(node: NodeProto) -> str:
    """Node 'conv1' (Conv); one without a name by its first output."""
    name = node.name or next((f"→{o}" for o in node.output if o), "without name")
    return f"Node {quoted(name)} ({quoted(node.op_type)[1:-1]})"


def _duplicate(name: str, what: str, graph: GraphProto) -> BadInputError:
    if not name:
        return BadInputError(f"One of the {what} of graph {quoted(graph.name)} has no name; {EXPORT_AGAIN}.")
    return BadInputError(f"Two {what} of graph {quoted(graph.name)} have the name {quoted(name)}; {EXPORT_AGAIN}.")
