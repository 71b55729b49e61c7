"""Write a model so that a reader never sees half of one.

The file is written beside its final name and moved there in one step. External data cannot move in the same step as the
model that refers to it, so an old model is taken away first: at no moment does a model lie there with the wrong data.

    save_model(model, "small.onnx")   # small.onnx, and small.onnx.data if the original had such

A model whose original used external data, or that protobuf cannot hold (2 GiB), gets all its larger tensors in one
data file beside it, copied one tensor at a time.
"""

import contextlib
import errno
import math
import os
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from onnx import AttributeProto, GraphProto, ModelProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model

from onnxprune.errors import BadInputError, quoted
from onnxprune.model.files import folder_of
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.model.protobuf import copy_fields, copy_unknown_fields
from onnxprune.model.tensors import external_region, is_external, n_bytes, read_bytes

MAX_PROTO_BYTES = (1 << 31) - (1 << 20)  # protobuf's limit, with room for the headers that change
MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the model: shapes and scalars are wanted without the data file
ALIGNMENT = 4096  # so that a runtime can map large tensors
_COPY = 1 << 22


def save_model(
    model: Model,
    path: str | os.PathLike[str],
    *,
    apart: bool = False,
    spared: Collection[Path] = (),
    max_proto_bytes: int = MAX_PROTO_BYTES,
) -> list[Path]:
    """Write the model to `path`, both or neither of the model and its data file; the paths that were written.

    apart: large tensors go to a data file in any case.
    model: its external tensors are copied from its folder; nothing that the new model says refers to the old files.
    path: its folder is made where it is missing.
    spared: files that must not be overwritten, though the model does not read them (`LoadedModel.data_files`).

    Raises: BadInputError if the place cannot be written to or external data is gone.
    """
    path, proto = Path(path), model.proto
    held = list(tensors(proto.graph))
    is_apart = apart or any(map(is_external, held)) or _size(held) > max_proto_bytes
    try:
        if path.exists() and not path.is_file():  # moving a file onto /dev/null would replace it
            raise OSError(errno.EINVAL, "it is no plain file")
        spared = {*map(_real, spared), *data_files(model)}
        if _real(path) in spared:
            raise BadInputError(f"{quoted(path)} holds weights of the original; choose another output path.")
        with folder_of(path):
            if is_apart:
                return _save_apart(model, path, spared)
            with _beside(path) as (file, temporary):
                file.write(proto.SerializeToString())
                _settle(file)
                os.replace(temporary, path)
            return [path]
    except OSError as e:
        reason = e.strerror or type(e).__name__
        raise BadInputError(f"Cannot write {quoted(path)} ({reason}); choose another output path.") from None


def save_result(
    proto: ModelProto, path: str | os.PathLike[str], source: LoadedModel, spared: Collection[Path] = ()
) -> None:
    """Write what was made of a loaded model: with a data file if that had one, and over none of its files.

    spared: further files that must not be overwritten. Raises as `save_model`.
    """
    save_model(source.beside(proto), path, apart=source.has_external_data, spared={*source.data_files, *spared})


def _save_apart(model: Model, path: Path, spared: Collection[Path]) -> list[Path]:
    data_path = _free_name(path, spared)
    with _beside(data_path) as (data, temporary_data), _beside(path) as (file, temporary):
        out = ModelProto()
        copy_fields(model.proto, out, "graph")
        _copy_graph(model.proto.graph, out.graph, data, data_path.name, model.folder)
        file.write(out.SerializeToString())
        _settle(data)
        _settle(file)
        path.unlink(missing_ok=True)
        os.replace(temporary_data, data_path)
        os.replace(temporary, path)
    return [path, data_path]


def _copy_graph(graph: GraphProto, target: GraphProto, data: BinaryIO, location: str, folder: Path | None) -> None:
    """Copy a graph, moving its larger initializers into the data file as they come."""
    for field, value in graph.ListFields():
        if field.name == "initializer":
            for tensor in value:
                _copy_tensor(tensor, target.initializer.add(), data, location, folder)
        elif field.name == "node":
            for node in value:
                new = target.node.add()
                new.CopyFrom(node)
                for old, attribute in zip(node.attribute, new.attribute, strict=True):
                    if attribute.type == AttributeProto.GRAPH:
                        attribute.g.Clear()
                        _copy_graph(old.g, attribute.g, data, location, folder)
                    elif attribute.type == AttributeProto.TENSOR and is_external(old.t):
                        attribute.t.Clear()
                        _copy_tensor(old.t, attribute.t, data, location, folder)
        elif isinstance(value, str):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).extend(value)
    copy_unknown_fields(graph, target)


def _copy_tensor(tensor: TensorProto, target: TensorProto, data: BinaryIO, location: str, folder: Path | None) -> None:
    size = _size([tensor])
    if not is_external(tensor) and (size < MIN_EXTERNAL_BYTES or tensor.data_type == TensorProto.STRING):
        target.CopyFrom(tensor)
        return
    for name in ("data_type", "name", "doc_string"):
        if tensor.HasField(name):
            setattr(target, name, getattr(tensor, name))
    target.dims.extend(tensor.dims)
    target.metadata_props.extend(tensor.metadata_props)
    data.write(b"\0" * (-data.tell() % (ALIGNMENT if size >= ALIGNMENT else 64)))
    offset = data.tell()
    if is_external(tensor):
        region = external_region(tensor, folder)
        with region.path.open("rb") as source:
            source.seek(region.offset)
            left = region.length
            while left:
                chunk = source.read(min(left, _COPY))
                if not chunk:
                    raise BadInputError(
                        f"External data of tensor {quoted(tensor.name)} was cut off while it was read; run again."
                    )
                left -= len(chunk)
                data.write(chunk)
    else:
        data.write(read_bytes(tensor))
    target.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", location),
        ("offset", str(offset)),
        ("length", str(data.tell() - offset)),
    ):
        target.external_data.add(key=key, value=value)


def embedded(model: Model) -> ModelProto | None:
    """The model with its external data inside (itself, if it has none); None where protobuf cannot hold that."""
    proto = model.proto
    external = [t for t in tensors(proto.graph) if is_external(t)]
    if not external:
        return proto
    apart = sum(n_bytes(t.data_type, math.prod(t.dims)) for t in external)
    if apart + _size(list(tensors(proto.graph))) > MAX_PROTO_BYTES:
        return None
    copy = ModelProto()
    copy.CopyFrom(proto)
    load_external_data_for_model(copy, str(model.folder or "."))
    return copy


def stored_bytes(proto: ModelProto) -> int:
    """Size of the model, its external data included."""
    external = [t for t in tensors(proto.graph) if is_external(t)]
    return int(proto.ByteSize()) + sum(n_bytes(t.data_type, math.prod(t.dims)) for t in external)


def data_files(model: Model) -> frozenset[Path]:
    """The files, links resolved, in which external tensors of a model lie."""
    return frozenset(_real(external_region(t, model.folder).path) for t in tensors(model.proto.graph) if is_external(t))


def _free_name(path: Path, spared: Collection[Path]) -> Path:
    """NAME.onnx.data, or with a number if something still needs what is there."""
    number = 0
    while True:
        name = f"{path.name}.data" if not number else f"{path.name}.{number}.data"
        candidate = path.with_name(name)
        if _real(candidate) not in spared:
            return candidate
        number += 1


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file in the folder of `path`, gone at the end unless it was moved."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file, part
    finally:
        part.unlink(missing_ok=True)


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Initializers and tensor attributes, those of subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from tensors(attribute.g)
            elif attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def _size(tensors: list[TensorProto]) -> int:
    """Bytes inside the proto (an upper bound where a type is kept in wider fields)."""
    total = 0
    for t in tensors:
        total += n_bytes(t.data_type, math.prod(t.dims)) if t.HasField("raw_data") else 0
        total += 4 * len(t.float_data) + 8 * len(t.double_data)
        total += 10 * (len(t.int32_data) + len(t.int64_data) + len(t.uint64_data))
        total += sum(map(len, t.string_data)) if t.string_data else 0
    return total
