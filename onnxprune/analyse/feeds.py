"""Inputs from the user: `.npz` files and shapes on the command line, checked against what the model declares."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from onnxprune.analyse.batch import Batch, Runner, accepts, find_batch, first_axes
from onnxprune.analyse.runs import Taking, first_run, in_runs
from onnxprune.analyse.samples import Samples
from onnxprune.analyse.sources import (
    BY_SAMPLE,
    FOLDS,
    GROUPS,
    HELD,
    TAG,
    Aside,
    Sources,
    parted,
    parts,
    set_aside,
    tagged,
)
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.files import instead
from onnxprune.runtime import declared_batch


def load_data(path: str | Path, inputs: list[onnx.ValueInfoProto], labels: bool = False) -> list[Feeds]:
    """Feeds from a `.npz` file (arrays named like the inputs, stacked along the batch axis) or a folder of them, one feed each.

    A folder without such files of its own gives those of its subfolders.
    The array of a `.npy` file is the input of a model that has one.
    Arrays with other names are left out, or come along where `labels` are asked for. Raises `BadInputError` where names,
    types or shapes do not fit, and where a value is NaN.
    """
    return [_read(file, inputs, labels) for file in data_files(Path(path))]


def data_files(path: Path) -> list[Path]:
    """The file, or those of a folder: its own, else those of its subfolders. Raises `BadInputError` where there is none."""
    if not path.exists():
        raise BadInputError(f"--data {path} does not exist; {instead(path, 'give a .npz file or a folder of them.')}")
    if not path.is_dir():
        return [path]
    for pattern in ("", "**/"):
        files = sorted([*path.glob(f"{pattern}*.npz"), *path.glob(f"{pattern}*.npy")])
        if files:
            return files
    raise BadInputError(
        f"--data {path} holds no .npz file; make one with onnxprune data, or write one per input with numpy.savez."
    )


def read_arrays(
    path: Path, option: str, single: str = "", only: Collection[str] | None = None, missing: bool = False
) -> dict[str, Array]:
    """The arrays of a `.npz` file, or the one of a `.npy` file under the name `single`. Raises `BadInputError`.

    only: names to read, all arrays where one of these is missing; missing: those of them that are there.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            if single:
                return {single: archive}
            raise BadInputError(
                f"{option} {path} is a single array; save it by name: numpy.savez(path, input_name=array)."
            )
        with archive:
            if missing and only is not None:
                only = [name for name in only if name in archive.files]
            elif only is None or not {*only} <= {*archive.files}:
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
            raise BadInputError(
                f"--data {path} has no array '{value.name}' {_other_name(value.name, [*arrays], names)}"
            )
        feeds[value.name] = _fit(arrays[value.name], value, path)
    empty = _without_samples(feeds, inputs)
    if empty is not None:
        shape = list(feeds[empty].shape)
        raise BadInputError(f"--data {path}: '{empty}' has shape {shape} and so no samples; give some.")
    return (arrays if labels else {}) | feeds


def _other_name(name: str, given: list[str], names: list[str]) -> str:
    """What is there instead of an array, and what to do: the end of a message. names: of all inputs."""
    if not given:
        return "(it has none at all); name arrays like the model's inputs."
    free = [n for n in given if n not in names]
    near = free if len(free) == 1 and len(names) == 1 else get_close_matches(name, free, 1)
    way = f"save '{near[0]}' as '{name}'" if near else "name arrays like the model's inputs"
    return f"(it has: {', '.join(given[:8])}); {way}."


def sources_of(path: str | Path, inputs: Sequence[onnx.ValueInfoProto]) -> Sources:
    """The sources of what `load_data` reads there, feed by feed. Raises `BadInputError` for `groups` that are no list of labels."""
    path, names = Path(path), [v.name for v in inputs]
    files = data_files(path)
    given = [] if GROUPS in names else [_groups(file) for file in files]
    if any(g is not None for g in given):
        missing = [file for file, g in zip(files, given, strict=True) if g is None]
        if missing:
            raise BadInputError(
                f"--data {missing[0]} has no array '{GROUPS}', and other files have; give all of them one."
            )
        return Sources("group", tuple(g for g in given if g is not None))
    if len(files) < 2:
        return BY_SAMPLE
    folders = [file.relative_to(path).parts[0] for file in files]
    nested = any(file.parent != path for file in files)
    return Sources("folder" if nested else "file", tuple(np.asarray(f) for f in folders))


def sources_in(feeds: Sequence[Feeds], inputs: Sequence[onnx.ValueInfoProto]) -> Sources:
    """The sources of feeds that are in memory: what their arrays `groups` say, else every sample is one."""
    if any(GROUPS not in f for f in feeds) or GROUPS in {v.name for v in inputs}:
        return BY_SAMPLE
    return Sources("group", tuple(_grouping(f[GROUPS], "The data") for f in feeds))


def _groups(file: Path) -> Array | None:
    found = {} if file.suffix == ".npy" else read_arrays(file, "--data", only=[GROUPS], missing=True)
    return _grouping(found[GROUPS], f"--data {file}") if GROUPS in found else None


def _grouping(array: Array, where: str) -> Array:
    """One label per sample, or one for all."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim > 1 or array.dtype.kind not in "iubfSU":
        raise BadInputError(
            f"{where}: '{GROUPS}' must hold one label per sample, the source that it comes from; its shape is {list(array.shape)}."
        )
    return array


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
                f"--data {path}: '{value.name}' is {array.dtype}, the model wants {want}; convert it first: array.astype('{want}')."
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
    for what, order in (("channels last", (0, 3, 1, 2)), ("channels first", (0, 2, 3, 1))):
        if array.ndim == 4 and fits(declared, tuple(array.shape[k] for k in order)):
            return f"; its pictures have {what}, so move the axes: array.transpose{order}"
    if fits(declared[1:], array.shape):
        return f"; put a batch axis first: {[declared[0] or 1, *array.shape]}"
    if len(declared) == array.ndim:
        axis = next((k for k in range(array.ndim) if k and declared[k] not in (None, array.shape[k])), 0)
        return f"; axis {axis} must have size {declared[axis]}, not {array.shape[axis]}" if axis else ""
    return f"; it must have {len(declared)} axes, not {array.ndim}"


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
PATCH = 0.5
USUAL = 512  # samples that are always used, if they are there


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
    aside: Aside | None = None,
    *,
    sources: Sources = BY_SAMPLE,
    taking: Taking | None = None,
    share: float = 1.0,
) -> Samples:
    """Calibration samples: every fourth portion, or source, is held out; where there are less than `wanted`, patched ones are added.

    limit: at most so many, the first ones; None: this share of all, spread evenly over the data, and `USUAL` at least. model: to run, to
    see which axis holds samples (`analyse/batch.py`); without it, first axes do. aside: some samples, or sources, take no part in any of
    this. taking: bytes that a run of some feeds takes; portions that take too much are cut into several runs.
    """
    batch, way = _cutting(feeds, inputs, limit, model, taking)
    tied = tagged(feeds, batch, sources)
    most = max(USUAL, int(share * sum(batch.count(f) for f in feeds))) if limit is None and share < 1 else None
    limit = limit if most is None else most
    kind = sources.kind if TAG in tied[0] else "sample"
    unseen, of = None, list[int]()
    if aside is not None:
        tied, apart, numbers = set_aside(tied, batch, limit, aside, seed, kind)
        cut = [(p, number) for f, number in zip(apart, numbers, strict=True) for p in portions([f], batch, parts=1)]
        apart, of = [p for p, _ in cut], [number for _, number in cut]
        unseen = replace(_taken(apart, [True] * len(apart), batch), source_of=tuple(of), held_by=kind)
        unseen = in_runs(unseen, batch, taking)
    whole, held, counts = _parted(spread(tied, batch, most), batch, limit, way)
    found = replace(_taken(whole, held, batch), unseen=unseen, held_by=kind, sources=counts)
    found = replace(found, left_out=sum(batch.size(f) for f in tied) - found.count)
    return in_runs(_augmented(found, batch, wanted, seed), batch, taking)


def spread(feeds: list[Feeds], batch: Batch, limit: int | None) -> list[Feeds]:
    """At most `limit` pieces of the feeds, evenly spread over them: data often lie sorted by kind."""
    ends = np.cumsum([0, *(batch.count(f) for f in feeds)])
    count = int(ends[-1])
    if limit is None or count <= limit:
        return feeds
    chosen = np.arange(limit) * count // limit
    parts = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(ends)]
    return [
        f if len(part) == batch.count(f) else batch.picked(f, part)
        for f, part in zip(feeds, parts, strict=True)
        if len(part)
    ]


def _taken(whole: Sequence[Feeds], held: Sequence[bool], batch: Batch) -> Samples:
    """Portions of the user's as samples, their labels apart."""
    rows = [{n: a for n, a in f.items() if n in batch.names} for f in whole]
    labels = [{n: a for n, a in f.items() if n not in batch.names} for f in whole]
    return Samples(tuple(rows), tuple(held), tuple(batch.size(f) for f in rows), len(rows), tuple(labels))


def _cutting(
    feeds: list[Feeds],
    inputs: list[onnx.ValueInfoProto],
    limit: int | None,
    model: Runner | None,
    taking: Taking | None,
) -> tuple[Batch, Callable[[list[Feeds], Batch], list[Feeds]]]:
    """How feeds are cut into samples so that the model accepts the portions; and how they are joined before."""
    names = frozenset(v.name for v in inputs)
    nothing = Batch({}, {}, names)
    batch = (first_axes(feeds, inputs) or nothing) if model is None else find_batch(feeds, inputs, model)

    def fits(feed: Feeds) -> bool:
        return model is None or accepts(model, {n: a for n, a in feed.items() if n in names})

    for way in (merged, _apart):
        if fits(first_run(portions(way(feeds, batch), batch, limit)[0], batch, taking)):
            return batch, way
    return nothing, _apart


def _parted(
    tied: list[Feeds], batch: Batch, limit: int | None, way: Callable[[list[Feeds], Batch], list[Feeds]]
) -> tuple[list[Feeds], list[bool], tuple[int, int] | None]:
    """Portions, whether each is held out; and, where portions are of sources, how many there are and are held out. tied: tagged feeds."""
    if TAG not in tied[0]:
        whole = portions(way(tied, batch), batch, limit)
        return whole, (parts(len(whole)) == HELD).tolist(), None
    shares, found = parted(tied, batch, limit)
    cut = [portions(way(share, batch), batch, parts=1) for share in shares]
    whole = [{n: a for n, a in f.items() if n != TAG} for some in cut for f in some]
    held = [number == HELD for number, some in enumerate(cut) for _ in some]
    return whole, held, (len(found), int((found == HELD).sum()))


def _apart(feeds: list[Feeds], batch: Batch) -> list[Feeds]:
    """As they are, see `merged`."""
    return feeds


def _augmented(samples: Samples, batch: Batch, wanted: int, seed: int) -> Samples:
    """With patched samples, until there are as many as wanted."""
    given, held, sizes = list(samples.feeds), list(samples.held), list(samples.sizes)
    made: list[Feeds] = []
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    while count and count + len(made) * max(sizes) < wanted and all(_patchable(f, batch) for f in given):
        for k, feed in enumerate(given):
            others = [f for f, h in zip(given, held, strict=True) if h == held[k]]
            made.append(_patched(feed, others[int(rng.integers(len(others)))], rng))
    more = 1 + len(made) // max(len(given), 1)
    return replace(samples, feeds=(*given, *made), held=tuple(held * more), sizes=tuple(sizes * more))


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
