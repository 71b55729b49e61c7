"""Read a model and refuse, in one sentence, what nothing downstream could work on.

    load("model.onnx").proto.graph

Nothing of the model is executed, no external data is kept, and no file is opened outside the model's folder. What the
graph itself must satisfy is in model/check.py; local functions are inlined, because everything after this works
on one kind of graph.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from onnxprune.errors import BadInputError, UnsupportedModelError, quoted
from onnxprune.model.check import check, check_texts
from onnxprune.model.files import instead
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.model.save import data_files

Source: TypeAlias = str | os.PathLike[str] | ModelProto  # a file, or a model in memory

MAX_FILE_BYTES = (1 << 31) - 1  # protobuf reads no more
MAX_CALL_DEPTH = 64
MAX_INLINED_NODES = 1_000_000

_OTHER_FORMATS = {  # how files start that people take for ONNX models
    b"version https://git-lfs": ("a Git LFS pointer", "run `git lfs pull`"),
    b"PK\x03\x04": ("a zip archive", "unpack it, or export the PyTorch checkpoint to ONNX first"),
    b"\x89HDF": ("an HDF5 file", "export the Keras model to ONNX first"),
    b"\x80\x02": ("a Python pickle", "export the PyTorch model to ONNX first"),
    b"\x1f\x8b": ("a gzip archive", "unpack it first"),
    b"ORTM": ("an ORT-format model", "give the .onnx file that it was made from"),
    b"\x89PNG": ("a picture", "give the .onnx file"),
    b"\xff\xd8\xff": ("a picture", "give the .onnx file"),
    b"\x93NUMPY": ("an array of NumPy", "give the .onnx file, and inputs with --data"),
    b"<": ("an HTML or XML page", "download the file itself"),
    b"{": ("a JSON file", "give the .onnx file"),
}


def file_of(source: Source) -> str | None:
    """The file as it was named; None for a model in memory."""
    return str(source) if isinstance(source, str | os.PathLike) else None


def load(source: Source) -> LoadedModel:
    """Read and check a model, from its file or from memory (then it is not copied and must not change later).

    Raises: BadInputError.
    """
    if isinstance(source, ModelProto):
        path, proto, digest, size = None, source, *_fingerprint(source)
    else:
        path = Path(source)
        data = _read(path)
        digest, size = hashlib.sha256(data).hexdigest(), len(data)
        proto = _parse(data, path)
        del data
    name = "The model" if path is None else f"{quoted(path)}"
    _check_header(proto, name)
    proto = _inline(proto)
    folder = None if path is None else path.parent
    checked = check(Model(proto, folder))
    if checked.orders and path is None and proto is source:
        proto = ModelProto()
        proto.CopyFrom(source)
        checked = check(Model(proto, folder))
    for graph, order in checked.orders:
        _reorder(graph, order)
    return LoadedModel(
        proto=proto,
        path=path,
        folder=folder,
        sha256=digest,
        has_external_data=checked.external_bytes is not None,
        size_bytes=size + (checked.external_bytes or 0),
        data_files=data_files(Model(proto, folder)),
    )


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadInputError(f"There is no file {quoted(path)}; {instead(path, 'check the path.')}") from None
    except (OSError, ValueError) as e:
        raise BadInputError(f"{quoted(path)} cannot be read ({_first_line(e)}); check the path.") from None
    if stat.S_ISDIR(status.st_mode):
        raise BadInputError(f"{quoted(path)} is a directory; give the .onnx file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{quoted(path)} is not a plain file; give an .onnx file.")
    if status.st_size == 0:
        raise BadInputError(f"{quoted(path)} is empty; fetch or export the model again.")
    if status.st_size > MAX_FILE_BYTES:
        raise BadInputError(
            f"{quoted(path)} is larger than the 2 GiB that protobuf can read; "
            "save the model with external data (onnx.save with save_as_external_data=True)."
        )
    try:
        return path.read_bytes()
    except OSError as e:
        raise BadInputError(f"{quoted(path)} cannot be read ({e.strerror}); check its permissions.") from None


def _parse(data: bytes, path: Path) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RuntimeError):
        raise _not_onnx(data, path, "protobuf cannot read it, or it is cut short") from None
    if not proto.HasField("graph"):
        raise _not_onnx(data, path, "it holds no graph")
    return proto


def _not_onnx(data: bytes, path: Path, reason: str) -> BadInputError:
    if path.suffix == ".npz":
        return BadInputError(f"{quoted(path)} holds arrays of NumPy; give the .onnx file here, and inputs with --data.")
    for start, (what, remedy) in _OTHER_FORMATS.items():
        if data.startswith(start):
            return BadInputError(f"{quoted(path)} is {what}, not an ONNX model; {remedy}.")
    if data[:1] == b"\x08" and data[2:3] == b"\x12":  # IR version, then the name of the producer
        return BadInputError(
            f"{quoted(path)} begins like an ONNX model, but is cut short or damaged ({len(data):,} bytes are here); "
            "copy, fetch or export it again."
        )
    return BadInputError(
        f"{quoted(path)} is not an ONNX model ({reason}); check the path, or fetch or export it again."
    )


def _fingerprint(proto: ModelProto) -> tuple[str, int]:
    try:
        data = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as e:
        raise BadInputError(
            f"The model cannot be serialized ({_first_line(e)}); if it is larger than 2 GiB, "
            "save it with external data and give the path."
        ) from None
    return hashlib.sha256(data).hexdigest(), len(data)


def _check_header(proto: ModelProto, name: str) -> None:
    """There is a graph, an IR version and opsets, and none is newer than the installed onnx."""
    check_texts(proto, "The model's header")
    if not proto.HasField("graph"):
        raise BadInputError(f"{name} is not an ONNX model (it holds no graph); check the path.")
    installed = f"the installed onnx {onnx.__version__}"
    if proto.ir_version < 1:
        raise BadInputError(f"{name} has no IR version, so it is no valid ONNX model; export it again.")
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"{name} has IR version {proto.ir_version}, but {installed} knows only up to {onnx.IR_VERSION}; "
            "upgrade onnx or export the model for an older version."
        )
    if not proto.opset_import:
        raise BadInputError(f"{name} imports no opset, so its operators have no meaning; export it again.")
    newest = {d: most for d, (_, most) in onnx.defs.C.schema_version_map().items()}
    seen = set()
    for opset in proto.opset_import:
        check_texts(opset, "An opset import")
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        label = f"opset {opset.version} of {quoted(domain or 'ai.onnx')}"
        if domain in seen:
            raise BadInputError(f"{name} imports {quoted(domain or 'ai.onnx')} twice; export it again.")
        seen.add(domain)
        if opset.version < 1:
            raise BadInputError(f"{name} imports {label}, which does not exist; export it again.")
        if opset.version > newest.get(domain, opset.version):
            raise UnsupportedModelError(
                f"{name} imports {label}, but {installed} knows only up to {newest[domain]}; "
                "upgrade onnx or export the model for an older opset."
            )


FunctionKey = tuple[str, str, str]


def _inline(proto: ModelProto) -> ModelProto:
    """The model with all calls of its local functions replaced by their bodies; itself if it calls none."""
    if not proto.functions:
        return proto
    bodies: dict[FunctionKey, Sequence[NodeProto]] = {}
    for function in proto.functions:
        check_texts(function, f"Local function {quoted(function.name)}")
        key = (function.domain, function.name, function.overload)
        if key in bodies:
            raise BadInputError(f"Local function {quoted(function.name)} is defined twice; export the model again.")
        bodies[key] = function.node
    calls = Counter(k for n in _all_nodes(proto.graph.node) if (k := _key(n)) in bodies)
    if not calls:
        return proto
    sizes: dict[FunctionKey, int] = {}
    total = sum(n * _inlined_size(key, bodies, sizes, ()) for key, n in calls.items())
    if total > MAX_INLINED_NODES:
        raise UnsupportedModelError(
            f"Inlining the model's local functions would make more than {MAX_INLINED_NODES} nodes; simplify the model."
        )
    try:
        inlined: ModelProto = onnx.inliner.inline_local_functions(proto)
    except Exception as e:  # the C++ inliner raises what it likes
        raise UnsupportedModelError(
            f"The model's local functions cannot be inlined ({_first_line(e)}); export the model without functions."
        ) from None
    return inlined


def _inlined_size(
    key: FunctionKey,
    bodies: dict[FunctionKey, Sequence[NodeProto]],
    sizes: dict[FunctionKey, int],
    path: tuple[FunctionKey, ...],
) -> int:
    """How many nodes one call becomes; calls may nest, but never reach themselves."""
    if key in sizes:
        return sizes[key]
    if key in path or len(path) > MAX_CALL_DEPTH:
        raise BadInputError(
            f"Local function {quoted(key[1])} calls itself or others too deeply; export the model without functions."
        )
    counts = Counter(_key(n) for n in _all_nodes(bodies[key]))
    sizes[key] = sum(
        n * (_inlined_size(k, bodies, sizes, (*path, key)) if k in bodies else 1) for k, n in counts.items()
    )
    return sizes[key]


def _key(node: NodeProto) -> FunctionKey:
    return (node.domain, node.op_type, node.overload)


def _all_nodes(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    stack.append(attribute.g.node)
                stack.extend(g.node for g in attribute.graphs)


def _reorder(graph: GraphProto, order: Sequence[int]) -> None:
    nodes = []
    for index in order:
        node = NodeProto()
        node.CopyFrom(graph.node[index])
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]
