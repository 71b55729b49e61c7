"""Inputs from the user: `.npz` files and shapes on the command line, checked against what the model declares."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from onnxprune.analyse.batch import Batch, Runner, accepts, find_batch, first_axes
from onnxprune.analyse.samples import Samples
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.runtime import declared_batch


def load_data(path: str | Path, inputs: list[onnx.ValueInfoProto], labels: bool = False) -> list[Feeds]:
    """Feeds from a `.npz` file (arrays named like the inputs, stacked along the batch axis) or a folder of them, one feed each.

    The array of a `.npy` file is the input of a model that has one.
    Arrays with other names are left out, or come along where `labels` are asked for. Raises `BadInputError` where names,
    types or shapes do not fit, and where a value is NaN.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted([*path.glob("*.npz"), *path.glob("*.npy")])
        if not files:
            raise BadInputError(f"--data {path} holds no .npz file; write one per input with numpy.savez.")
        return [_read(file, inputs, labels) for file in files]
    if not path.exists():
        raise BadInputError(f"--data {path} does not exist; give a .npz file or a folder of them.")
    return [_read(path, inputs, labels)]


def read_arrays(path: Path, option: str, single: str = "", only: Collection[str] | None = None) -> dict[str, Array]:
    """The arrays of a `.npz` file, or the one of a `.npy` file under the name `single`. only: names to read. Raises `BadInputError`."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            if single:
                return {single: archive}
            raise BadInputError(
                f"{option} {path} is a single array; save it by name: numpy.savez(path, input_name=array)."
            )
        with archive:
            if only is None or not {*only} <= {*archive.files}:
                only = archive.files
            return {name: archive[name] for name in only}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150].rstrip(".")
        if "allow_pickle" in reason or "pickle" in reason:
            reason = "it is no archive of arrays of numbers (texts need a dtype such as <U8, not object)"
        raise BadInputError(f"{option} {path} cannot be read as .npz: {reason}.") from None


def _read(path: Path, inputs: list[onnx.ValueInfoProto], labels: bool = False) -> Feeds:
    names = [v.name for v in inputs]
    arrays = read_arrays(path, "--data", names[0] if len(names) == 1 else "", None if labels else names)
    feeds: Feeds = {}
    for value in inputs:
        if value.name not in arrays:
            has = f"it has: {', '.join(list(arrays)[:8])}" if arrays else "it has none at all"
            raise BadInputError(
                f"--data {path} has no array '{value.name}' ({has}); name arrays like the model's inputs."
            )
        feeds[value.name] = _fit(arrays[value.name], value, path)
    empty = _without_samples(feeds, inputs)
    if empty is not None:
        shape = list(feeds[empty].shape)
        raise BadInputError(f"--data {path}: '{empty}' has shape {shape} and so no samples; give some.")
    return (arrays if labels else {}) | feeds


def _without_samples(feeds: Feeds, inputs: list[onnx.ValueInfoProto]) -> str | None:
    """An input whose batch axis is empty; an axis of another meaning may be (a past of length 0, a graph without edges).

    Empty is a first axis that must hold whole batches, one that has a size in another input, and the first axis of all inputs; and
    all is where no input holds anything.
    """
    sizes: dict[str, int] = {}
    for value in inputs:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=False):
            sizes[dim.dim_param] = max(size, sizes.get(dim.dim_param, 0))
    first = [v for v in inputs if feeds[v.name].ndim]
    empty = [v for v in first if not feeds[v.name].shape[0]]
    if first and not any(feeds[v.name].size for v in first):
        return str(first[0].name)
    for value in empty:
        dims = value.type.tensor_type.shape.dim
        symbol = dims[0].dim_param if dims else ""
        if len(empty) == len(first) or declared_batch(value) or (symbol and sizes[symbol]):
            return str(value.name)
    return None


def _fit(array: Array, value: onnx.ValueInfoProto, path: Path) -> Array:
    want = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if array.dtype != want:
        if not np.can_cast(array.dtype, want, "same_kind"):
            raise BadInputError(
                f"--data {path}: '{value.name}' is {array.dtype}, the model wants {want}; convert it first."
            )
        array = array.astype(want)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInputError(f"--data {path}: '{value.name}' contains NaN or infinity; remove or repair those samples.")
    dims = value.type.tensor_type.shape.dim
    if value.type.tensor_type.HasField("shape"):
        declared = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]
        batchless = list(array.shape)
        fits = len(declared) == array.ndim and all(
            d is None or d == n or (axis == 0 and d > 0 and n % d == 0)
            for axis, (d, n) in enumerate(zip(declared, batchless, strict=True))
        )
        if not fits:
            shown = [d if d is not None else "?" for d in declared]
            raise BadInputError(
                f"--data {path}: '{value.name}' has shape {list(array.shape)}, the model wants {shown}{_way(array, declared)}."
            )
    return array


def _way(array: Array, declared: list[int | None]) -> str:
    """What to do where only the batch axis is one too many, or missing."""

    def fits(wanted: list[int | None], shape: tuple[int, ...]) -> bool:
        return len(wanted) == len(shape) and all(d in (None, n) for d, n in zip(wanted, shape, strict=True))

    if fits(declared, array.shape[1:]):
        return ", one input without a batch axis; give a folder with one file per input"
    if fits(declared[1:], array.shape):
        return f"; put a batch axis first: {[declared[0] or 1, *array.shape]}"
    return ""


def take(feeds: Feeds, inputs: list[onnx.ValueInfoProto], count: int) -> Feeds:
    """The first `count` samples where the batch is dynamic, else as many as the model declares."""
    return {v.name: feeds[v.name][:n] if (n := _rows(v, feeds, count)) else feeds[v.name] for v in inputs}


def twice(feeds: Feeds, inputs: list[onnx.ValueInfoProto]) -> Feeds:
    """A single sample two times where the batch is dynamic: with one, what lies once per sample looks as if it lay there once."""
    free = {v.name for v in inputs if _rows(v, feeds, -1) == -1}
    if {feeds[name].shape[0] for name in free} != {1}:
        return feeds
    return {name: array.repeat(2, axis=0) if name in free else array for name, array in feeds.items()}


def _rows(value: onnx.ValueInfoProto, feeds: Feeds, free: int) -> int:
    """The declared size of the first axis; `free` where it is dynamic, 0 where there is none."""
    dims = value.type.tensor_type.shape.dim
    if not feeds[value.name].ndim:
        return 0
    return dims[0].dim_value if dims and dims[0].HasField("dim_value") and dims[0].dim_value > 0 else free


BATCH = 16
PORTION = 1 << 19  # elements of the inputs in one portion, if more than one sample
ASIDE = 5  # one portion of so many is set aside to judge the finished model
FOLDS = 4
PATCH = 0.5


def merged(feeds: list[Feeds], batch: Batch) -> list[Feeds]:
    """Feeds of equal shapes stacked along the batch axis, where that is dynamic."""
    if batch.is_fixed or not batch.axes:
        return feeds
    alike: dict[tuple[object, ...], list[Feeds]] = {}
    for feed in feeds:
        alike.setdefault(batch.kind(feed), []).append(feed)
    return [batch.joined(some) for some in alike.values()]


def portions(feeds: list[Feeds], batch: Batch, limit: int | None = None, parts: int = FOLDS) -> list[Feeds]:
    """The user's feeds cut along the batch axis into portions that the model accepts, at most `limit` samples.

    parts: cut a feed into at least so many, if it has as many samples.
    """
    result: list[Feeds] = []
    left = limit if limit is not None else 1 << 60
    for feed in feeds:
        count = batch.count(feed)
        if count <= 1 or left <= 0:
            if left > 0:
                result.append(feed)
                left -= 1
            continue
        elements = sum(feed[n].size // count for n in batch.axes)
        count = min(count, left)
        left -= count
        portion = 1 if batch.is_fixed else max(1, min(BATCH, count // parts, PORTION // max(elements, 1)))
        result += [batch.part(feed, k, min(k + portion, count)) for k in range(0, count, portion)]
    return result


def samples_of(
    feeds: list[Feeds],
    inputs: list[onnx.ValueInfoProto],
    limit: int | None = None,
    wanted: int = 0,
    seed: int = 0,
    model: Runner | None = None,
    aside: bool = False,
) -> Samples:
    """Calibration samples: every fourth portion is held out; where there are less than `wanted`, patched ones are added.

    model: to run, to see which axis holds samples (`analyse/batch.py`); without it, first axes do. aside: a fifth of the portions
    takes no part in any of this.
    """
    known = {v.name for v in inputs}
    nothing = Batch({}, {}, frozenset(known))
    batch = (first_axes(feeds, inputs) or nothing) if model is None else find_batch(feeds, inputs, model)
    parts = ASIDE if aside else FOLDS
    for whole in (portions(merged(feeds, batch), batch, limit, parts), portions(feeds, batch, limit, parts)):
        if model is None or accepts(model, {n: a for n, a in whole[0].items() if n in known}):
            break
    else:
        whole, batch = feeds[:limit], nothing
    given = [{n: a for n, a in f.items() if n in known} for f in whole]
    labels = tuple({n: a for n, a in f.items() if n not in known} for f in whole)
    unseen = None
    if aside:
        if len(given) < ASIDE:
            raise BadInputError(
                f"--max-drop judges the result on samples that no step has seen: give at least {ASIDE} with --data, not {len(given)}."
            )
        last = range(ASIDE // 2, len(given), ASIDE)
        feeds_aside = tuple(given[k] for k in last)
        sizes_aside = tuple(batch.size(f) for f in feeds_aside)
        unseen = Samples(feeds_aside, (True,) * len(last), sizes_aside, len(last), tuple(labels[k] for k in last))
        given = [f for k, f in enumerate(given) if k not in last]
        labels = tuple(n for k, n in enumerate(labels) if k not in last)
    fold = FOLDS if len(given) >= FOLDS else 2
    sizes = [batch.size(f) for f in given]
    held = [k % fold == fold - 1 for k in range(len(given))]
    made: list[Feeds] = []
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    while count and count + len(made) * max(sizes) < wanted and all(_patchable(f, batch) for f in given):
        for k, feed in enumerate(given):
            others = [f for f, h in zip(given, held, strict=True) if h == held[k]]
            made.append(_patched(feed, others[int(rng.integers(len(others)))], rng))
    more = len(made) // max(len(given), 1)
    return Samples(tuple(given + made), tuple(held * (1 + more)), tuple(sizes * (1 + more)), len(given), labels, unseen)


def _patchable(feed: Feeds, batch: Batch) -> bool:
    """Is there one input to cut a patch from, with space or time behind the batch?"""
    name = _picture(feed)
    return name is not None and (batch.axes.get(name) == 0 or batch.each > 1 or feed[name].shape[0] == 1)


def _picture(feed: Feeds) -> str | None:
    """The one floating input with space axes; a sequence of integers where it is the only input."""
    names = [n for n, v in feed.items() if v.dtype.kind == "f" and v.ndim >= 3 and _space(v)]
    if not names and len(feed) == 1:
        names = [n for n, v in feed.items() if v.dtype.kind in "iu" and v.ndim == 2 and _space(v)]
    return names[0] if len(names) == 1 else None


def _space(array: Array) -> list[int]:
    """Axes that look like space or time: the largest two behind the batch (one, of three axes), if long enough."""
    axes = sorted(range(1, array.ndim), key=lambda a: -array.shape[a])[: max(1, array.ndim - 2)]
    return sorted(a for a in axes if array.shape[a] >= 8)


def _patched(feed: Feeds, other: Feeds, rng: np.random.Generator) -> Feeds:
    """Each sample with a patch of half its size along every space axis from another sample (CutMix, ICCV 2019)."""
    result = dict(feed)
    name = _picture(feed)
    assert name is not None
    array, source = feed[name].copy(), other[name]
    if source.shape[1:] != array.shape[1:]:
        source = feed[name]
    for k in range(array.shape[0]):
        where: list[slice] = [slice(None)] * (array.ndim - 1)
        for axis in _space(array):
            size = max(1, int(array.shape[axis] * PATCH))
            first = int(rng.integers(0, array.shape[axis] - size + 1))
            where[axis - 1] = slice(first, first + size)
        array[k][tuple(where)] = source[int(rng.integers(source.shape[0]))][tuple(where)]
    result[name] = array
    return result
