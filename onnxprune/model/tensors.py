"""Where a tensor's bytes are, how many there must be, and how to read them, one tensor at a time.

A `TensorProto` keeps its values in `raw_data`, in one of several typed fields, or in another file (external data):

    w = StoredValues(tensor, folder)   # nothing is read yet
    w.shape, w.dtype                   # known from the header
    w.load()                           # reads, and forgets again once nobody holds the array

Nothing here trusts the header: a region outside the model's folder, or shorter than the dims ask for, is refused
before any memory is reserved. External data: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

import math
import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxprune.errors import BadInputError, quoted

Array = NDArray[Any]

KNOWN_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
PACKED_BITS = {
    value: bits
    for name, bits in (
        ("UINT4", 4),
        ("INT4", 4),
        ("FLOAT4E2M1", 4),
        ("UINT2", 2),
        ("INT2", 2),
        ("FLOAT6E2M3", 6),
        ("FLOAT6E3M2", 6),
    )
    if (value := dict(TensorProto.DataType.items()).get(name)) is not None
}
_SHARED = {value for value, bits in PACKED_BITS.items() if 8 % bits == 0}
TYPED_FIELDS = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
_CHUNK = 1 << 22  # bytes read at a time when only scanning


@dataclass(frozen=True)
class Region:
    """A tensor's bytes inside an external file."""

    path: Path
    offset: int
    length: int


def is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


@lru_cache(maxsize=64)
def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """The numpy (or ml_dtypes) type of an ONNX element type; string is object."""
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    return dtype


@lru_cache(maxsize=64)
def _bits(data_type: int) -> int:
    return PACKED_BITS.get(data_type) or 8 * numpy_dtype(data_type).itemsize


def n_bytes(data_type: int, n_elements: int) -> int:
    """Length of `raw_data` for that many elements (4-bit types: two in a byte, the last one padded)."""
    return -(-n_elements * _bits(data_type) // 8)


def n_entries(data_type: int, n_elements: int) -> int:
    """Entries that the typed field must have: complex numbers take two, 4-bit and 2-bit types share a byte."""
    if data_type in _SHARED:
        return n_bytes(data_type, n_elements)
    pairs = 2 if data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    return pairs * n_elements


def typed_field(data_type: int) -> str:
    return str(helper.tensor_dtype_to_field(data_type))


def external_region(tensor: TensorProto, folder: Path | None) -> Region:
    """The region of an external tensor, checked: inside `folder`, a plain file, as long as the dims ask for.

    Raises: BadInputError.
    """
    what = f"External data of tensor {quoted(tensor.name)}"
    if folder is None:
        raise BadInputError(
            f"{what} cannot be found because the model was given in memory; give the path of its file instead."
        )
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if not isinstance(location, str) or not location or "\0" in location:
        raise BadInputError(f"{what} names no file; export the model again.")
    numbers = []
    for key in ("offset", "length"):
        text = entries.get(key, "")
        if text != "" and not (isinstance(text, str) and text.isascii() and text.isdigit()):
            raise BadInputError(
                f"{what} has {key} {quoted(text)}, which is no number of bytes; export the model again."
            )
        numbers.append(int(text[:20]) if text else None)
    path = _inside(folder, location, what)
    try:
        status = path.stat()
    except OSError as e:
        reason = "does not exist" if isinstance(e, FileNotFoundError) else str(e.strerror)
        raise BadInputError(
            f"{what}: file {quoted(location)} {reason}; put it beside the model in '{folder}'."
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{what}: {quoted(location)} is not a plain file; put the data file there.")
    offset = numbers[0] or 0
    needed = n_bytes(tensor.data_type, math.prod(tensor.dims))
    if numbers[1] is not None and numbers[1] != needed:
        raise BadInputError(
            f"{what} has {numbers[1]} bytes where its dims {shown(tensor.dims)} need {needed}; export the model again."
        )
    if offset + needed > status.st_size:
        raise BadInputError(
            f"{what}: file {quoted(location)} is too short ({status.st_size} bytes, {offset + needed} needed); "
            "it may be cut off, so fetch it again."
        )
    return Region(path, offset, needed)


def _inside(folder: Path, location: str, what: str) -> Path:
    """`folder / location`, refused where it leaves the folder by name or by symbolic link."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    leaves = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor != ""
    try:
        root, path = os.path.realpath(folder), os.path.realpath(folder / location)
        leaves = leaves or ".." in parts or os.path.commonpath([root, path]) != root
    except (OSError, ValueError):
        leaves = True
    if leaves:
        raise BadInputError(
            f"{what} lies outside the model's folder ({quoted(location)}), which is refused for safety; "
            "put the file itself beside the model."
        )
    return Path(path)


def shown(dims: Any) -> str:
    """Dims for a message, short even if they are nonsense."""
    head = ", ".join(str(d) for d in dims[:8])
    return f"[{head}{', …' if len(dims) > 8 else ''}]"


class StoredValues(LazyValues):  # type: ignore[misc]
    """Values that stay where the file keeps them until they are asked for.

    Unlike graphsurgeon's LazyValues they know their folder, use ml_dtypes for types that numpy lacks, and
    are shared while somebody holds the array but not kept after: pruning touches every weight once, and a large
    model must not end up in memory. The array is read-only, so "unchanged" is certain at export.
    """

    def __init__(self, tensor: TensorProto, folder: Path | None) -> None:
        self.tensor = tensor
        self.folder = folder
        self.shape = tuple(tensor.dims)
        self.dtype = numpy_dtype(tensor.data_type)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._loaded: weakref.ref[Array] | None = None

    def load(self) -> Array:
        """The values, read-only, of shape `self.shape`."""
        array = self._loaded() if self._loaded is not None else None
        if array is None:
            array = read(self.tensor, self.folder)
            array.setflags(write=False)
            self._loaded = weakref.ref(array)
        return array


class StoredSparseValues(StoredValues):
    """A sparse tensor; `load` makes it dense."""

    def __init__(self, tensor: onnx.SparseTensorProto, folder: Path | None) -> None:
        super().__init__(tensor.values, folder)
        self.sparse = tensor
        self.shape = tuple(tensor.dims)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Array:
        dense = np.zeros(self.shape, self.dtype)
        values = read(self.sparse.values, self.folder)
        indices = read(self.sparse.indices, self.folder)
        if indices.ndim == 2:  # [NNZ, rank]; otherwise [NNZ], into the flattened tensor
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
        dense.setflags(write=False)
        return dense


def sparse_of(name: str, array: Array) -> onnx.SparseTensorProto:
    """The array as values and flat positions."""
    flat = np.ascontiguousarray(array).reshape(-1)
    at = np.flatnonzero(flat)
    sparse = onnx.SparseTensorProto()
    sparse.values.CopyFrom(numpy_helper.from_array(flat[at], name))
    sparse.indices.CopyFrom(numpy_helper.from_array(at.astype(np.int64), f"{name}_indices"))
    sparse.dims.extend(array.shape)
    return sparse


def read(tensor: TensorProto, folder: Path | None) -> Array:
    """A tensor's values, of shape `tensor.dims`; external ones are read from `folder`."""
    if is_external(tensor):
        region = external_region(tensor, folder)
        dtype = numpy_dtype(tensor.data_type)
        if tensor.data_type not in PACKED_BITS:
            flat = np.fromfile(region.path, dtype, region.length // dtype.itemsize, offset=region.offset)
            return flat.reshape(tuple(tensor.dims))
        with region.path.open("rb") as file:
            file.seek(region.offset)
            tensor = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=file.read(region.length))
    if tensor.data_type == TensorProto.STRING:  # bytes that are no text survive the way back
        texts = [s.decode("utf-8", "surrogateescape") for s in tensor.string_data]
        return np.array(texts, dtype=object).reshape(tuple(tensor.dims))
    array: Array = numpy_helper.to_array(tensor)
    return array


def read_bytes(tensor: TensorProto) -> bytes:
    """What `raw_data` would hold, also for a tensor that keeps its values in a typed field."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    array = read(tensor, None)
    if tensor.data_type in PACKED_BITS:
        return bytes(numpy_helper.from_array(array).raw_data)
    return little_endian(array)


def little_endian(array: Array) -> bytes:
    """The array's bytes as `raw_data` wants them."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def has_nan(tensor: TensorProto, folder: Path | None) -> bool:
    """Whether a tensor of a floating-point type holds a NaN, without ever keeping more than one piece of it."""
    return any(bool(np.isnan(piece).any()) for piece in _pieces(tensor, folder))


def _pieces(tensor: TensorProto, folder: Path | None) -> Iterator[Array]:
    dtype = numpy_dtype(tensor.data_type)
    if tensor.data_type in PACKED_BITS or not _is_floating(dtype):
        return  # the packed float types have no NaN
    if is_external(tensor):
        region = external_region(tensor, folder)
        with region.path.open("rb") as file:
            file.seek(region.offset)
            left = region.length
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    return
                left -= len(chunk)
                yield np.frombuffer(chunk, dtype)
        return
    flat = read(tensor, folder).reshape(-1)
    step = _CHUNK // dtype.itemsize
    yield from (flat[i : i + step] for i in range(0, flat.size, step))


def _is_floating(dtype: np.dtype[Any]) -> bool:
    # ml_dtypes register as kind 'V' (or 'f'); among them only the packed integers, handled before, are not floats
    return dtype.kind in "fcV"
