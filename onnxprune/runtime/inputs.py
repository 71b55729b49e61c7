"""Inputs that a model accepts: of the declared types, and of sizes that are found by trying."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches

import numpy as np
import onnx
from onnx import ModelProto, helper

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.loaded import LoadedModel
from onnxprune.runtime.probe import Probe
from onnxprune.runtime.session import REMEDY, Session

SIZES = (16, 32, 64, 48, 128, 96, 224, 320, 512, 576, 1024, 8, 4, 2, 1)
MAX_ELEMENTS = 1 << 30
MAX_TRIED = 1 << 27  # numbers in all shapes that are tried in vain: seconds of work
MAX_GUESSED = 1 << 20  # where ranks are guessed, so that hundreds of shapes are tried
IMAGE_SIZES = (64, 128, 96, 48, 224, 256, 320, 32, 512, 640, 16, 1)
RANKS = (2, 3, 4, 1, 5, 0)  # to try where an input declares none, likeliest first


def graph_inputs(proto: ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that must be fed: initializers that are listed as inputs are left out."""
    known = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    return [v for v in proto.graph.input if v.name not in known]


def declared_batch(value: onnx.ValueInfoProto) -> int:
    """The declared size of an input's first axis; 0 where it is dynamic, or there is none."""
    dims = value.type.tensor_type.shape.dim
    return int(dims[0].dim_value) if dims and dims[0].HasField("dim_value") and dims[0].dim_value > 0 else 0


def symbols(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes of an input's axes: an int where static, else the dimension's symbol (made up where it has none)."""
    dims: list[int | str] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param or ("batch" if axis == 0 else f"{value.name}:{axis}"))
    return dims


def has_rank(value: onnx.ValueInfoProto) -> bool:
    """Does an input declare how many axes it has?"""
    return bool(value.type.tensor_type.HasField("shape"))


def ranked(inputs: Sequence[onnx.ValueInfoProto], ranks: dict[str, int]) -> list[onnx.ValueInfoProto]:
    """The inputs, each with a rank: those that declare none get that of `ranks`, all of their axes dynamic."""
    result = []
    for value in inputs:
        if value.type.HasField("tensor_type") and not has_rank(value):
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            copy.type.tensor_type.shape.SetInParent()
            for _ in range(ranks[value.name]):
                copy.type.tensor_type.shape.dim.add()
            value = copy
        result.append(value)
    return result


def _candidate_ranks(
    inputs: Sequence[onnx.ValueInfoProto], shapes: dict[str, tuple[int, ...]]
) -> Iterator[dict[str, int]]:
    """Ranks worth trying for inputs that declare none: as in `shapes`, else all inputs alike, else one by one."""
    given = {v.name: len(shapes[v.name]) for v in inputs if v.name in shapes}
    free = [v.name for v in inputs if v.type.HasField("tensor_type") and not has_rank(v) and v.name not in given]
    if not free:
        yield given
        return
    for rank in RANKS:
        yield given | dict.fromkeys(free, rank)
    if 1 < len(free) <= 3:
        for ranks in itertools.product(RANKS, repeat=len(free)):
            if len(set(ranks)) > 1:
                yield given | dict(zip(free, ranks, strict=True))


def random_feeds(
    inputs: Sequence[onnx.ValueInfoProto],
    sizes: dict[str, int],
    seed: int = 0,
    high: int = 100,
    shapes: dict[str, tuple[int, ...]] | None = None,
    most: int = MAX_ELEMENTS,
) -> Feeds:
    """Random inputs: normal floats, integers in [1, high), True, masks of 0 and 1.

    sizes: of every symbol. shapes: whole ones.
    inputs: with a rank each, see `ranked`. Raises `BadInputError` for one of more than `most` elements.
    """
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in inputs:
        if not value.type.HasField("tensor_type"):
            raise BadInputError(f"Input '{value.name}' is not a tensor; onnxprune feeds tensors only.")
        given = (shapes or {}).get(value.name)
        dims = symbols(value)
        if given and (
            len(given) != len(dims) or any(isinstance(d, int) and d != g for d, g in zip(dims, given, strict=True))
        ):
            wanted = ",".join(str(d) for d in dims)
            raise BadInputError(
                f"--input-shape {value.name}:{','.join(map(str, given))} does not fit the model's {wanted}."
            )
        shape = given or tuple(s if isinstance(s, int) else sizes[s] for s in dims)
        if math.prod(shape) > most:
            raise BadInputError(
                f"Input '{value.name}' of shape {list(shape)} is too large to try; give smaller --input-shape sizes."
            )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        if dtype.kind == "O":
            feeds[value.name] = np.full(shape, "a", dtype=object)
        elif dtype.kind == "b":
            feeds[value.name] = np.ones(shape, bool)
        elif dtype.kind in "iu":
            feeds[value.name] = rng.integers(min(1, high - 1), high, shape).astype(dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        if is_mask(value.name, shape) and dtype.kind in "iuf":
            feeds[value.name] = _as_mask(feeds[value.name])
    return feeds


def is_mask(name: str, shape: Sequence[int]) -> bool:
    """Does an input say which positions count? Nothing but its name tells: graphs often compute with it, as in `(1 - mask) * -3e38`."""
    return "mask" in name.lower() and 0 < len(shape) < 3


def _as_mask(drawn: Array) -> Array:
    """Ones where what was drawn is odd, or positive; and for the first position, so that one counts."""
    kept = (drawn > 0 if drawn.dtype.kind == "f" else drawn % 2).astype(drawn.dtype)
    kept[..., :1] = 1
    return kept


def rescaled(pair: tuple[Feeds, Feeds], seed: int, scale: float) -> tuple[Feeds, Feeds]:
    """New random values of the same shapes: uniform floats in [0, scale); other types stay."""
    rng = np.random.default_rng(seed)

    def redraw(feeds: Feeds) -> Feeds:
        return {
            n: np.asarray(scale * rng.random(v.shape), v.dtype) if v.dtype.kind == "f" else v for n, v in feeds.items()
        }

    return redraw(pair[0]), redraw(pair[1])


def candidate_sizes(inputs: Sequence[onnx.ValueInfoProto], alike: bool = False) -> Iterator[dict[str, int]]:
    """Sizes worth trying for the dynamic dimensions, likeliest first; the batch is 2, else 1. alike: all others of one size only."""
    names: dict[str, tuple[int, ...]] = {}
    for value in inputs:
        dims = symbols(value)
        for axis, dim in enumerate(dims):
            if isinstance(dim, str):
                options = SIZES if len(dims) < 4 else IMAGE_SIZES
                names.setdefault(dim, (2, 1) if axis == 0 else options)
    batch = [n for n, options in names.items() if options == (2, 1)]
    others = [n for n in names if n not in batch]
    if not names:
        yield {}
        return
    length = max((len(names[n]) for n in others), default=1)
    for first in (2, 1):
        for k in range(length):
            yield dict.fromkeys(batch, first) | {n: names[n][min(k, len(names[n]) - 1)] for n in others}
    if 1 < len(others) <= 3 and not alike:
        for combination in itertools.product(*(names[n][:10] for n in others)):
            yield dict.fromkeys(batch, 1) | dict(zip(others, combination, strict=True))


def sizes_beside(inputs: Sequence[onnx.ValueInfoProto], graph: onnx.GraphProto) -> Iterator[dict[str, int]]:
    """Sizes worth trying where the usual ones do not do: the axes of an input are as long as one of a constant that is read beside it."""
    constants = {t.name: tuple(t.dims) for t in graph.initializer}
    known: dict[str, list[int]] = {}
    for value in inputs:
        read = [n for node in graph.node if value.name in node.input for n in node.input]
        known[value.name] = list(dict.fromkeys(d for n in read for d in constants.get(n, ())))
    for k in range(max(map(len, known.values()), default=0)):
        for batch in (2, 1):
            sizes: dict[str, int] = {}
            for value in inputs:
                for axis, dim in enumerate(symbols(value)):
                    if isinstance(dim, str):
                        beside = known[value.name]
                        size = beside[min(k, len(beside) - 1)] if beside else SIZES[0]
                        sizes.setdefault(dim, size if axis else batch)
            if sizes:
                yield sizes


def find_feeds(
    model: LoadedModel,
    shapes: dict[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    session: Session | Probe | None = None,
) -> tuple[Feeds, Feeds]:
    """Two feeds that the model accepts and that differ in every dynamic dimension where it lets them.

    `shapes` fixes the shape of the inputs it names (as `--input-shape` does); `session` runs the model (by default a new
    one). Raises `BadInputError` with ONNX Runtime's own words when nothing runs.
    """
    inputs, shapes = graph_inputs(model.proto), shapes or {}
    known = [v.name for v in inputs]
    for name in shapes:
        if name not in known:
            near = get_close_matches(name, known, 1)
            way = f"did you mean '{near[0]}'?" if near else f"its inputs are: {', '.join(known)}."
            raise BadInputError(f"--input-shape names '{name}', which is no input of the model; {way}")
    session = session or Session(model)
    error: BadInputError | None = None
    tried = 0
    most = MAX_ELEMENTS if all(has_rank(v) or v.name in shapes for v in inputs) else MAX_GUESSED
    for ranks in _candidate_ranks(inputs, shapes):
        declared = ranked(inputs, ranks)
        for high in (100, 10, 2, 1):
            told = sizes_beside(declared, model.proto.graph)
            usual = candidate_sizes(declared, alike=most < MAX_ELEMENTS)
            for sizes, is_usual in itertools.chain(((s, True) for s in usual), ((s, False) for s in told)):
                if is_usual and tried > MAX_TRIED:
                    continue
                try:
                    first = random_feeds(declared, sizes, seed, high, shapes, most)
                    tried += sum(v.size for v in first.values())
                    session.run(first)
                except BadInputError as failure:
                    error = error or failure
                    continue
                observed = {name: array.shape for name, array in first.items()}
                return first, vary(session, inputs, observed, seed, high) or first
            if all(v.dtype.kind not in "iu" for v in random_feeds(declared, sizes, seed, 2, shapes).values()):
                break
    hint = "" if shapes else f" Give working shapes with {_way(inputs)} or inputs with --data."
    said = str(error).removesuffix(REMEDY) if hint else error
    raise BadInputError(f"No random input runs through the model. {said}{hint}")


def _way(inputs: Sequence[onnx.ValueInfoProto]) -> str:
    """The option that says shapes, written for the first input of the model that has axes of unknown sizes."""
    free = [v for v in inputs if not has_rank(v) or any(isinstance(d, str) for d in symbols(v))] or list(inputs)
    if not free or not has_rank(free[0]):
        return f"--input-shape {free[0].name if free else 'name'}:1,3,224,224 (your sizes)"
    dims = symbols(free[0])
    usual = {4: (1, 3, 224, 224), 3: (1, 128, 64), 2: (1, 128)}.get(len(dims), (1,) * len(dims))
    sizes = ",".join(str(u if isinstance(d, str) else d) for d, u in zip(dims, usual, strict=True))
    return f"--input-shape {free[0].name}:{sizes} (your sizes)"


def vary(
    session: Session | Probe,
    inputs: Sequence[onnx.ValueInfoProto],
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    high: int = 100,
) -> Feeds | None:
    """Random feeds that differ from `shapes` in the dynamic dimensions, as far as the model accepts them.

    Other values are needed in any case: what is equal in both runs passes for independent of the inputs.
    """
    inputs, sizes = _named(ranked(inputs, {name: len(shape) for name, shape in shapes.items()}), shapes)
    # integers below `high`, or below less where those are out of some table's range
    integers = any(v.dtype.kind in "iu" for v in random_feeds(inputs, sizes, seed, 2).values())
    for bound in [h for h in (high, high // 2, 10, 4, 2, 1) if 1 <= h <= high] if integers else [high]:
        found = _second_feeds(session, inputs, sizes, seed, bound)
        if found is not None:
            return found
    return None


def _named(
    inputs: Sequence[onnx.ValueInfoProto], shapes: dict[str, tuple[int, ...]]
) -> tuple[list[onnx.ValueInfoProto], dict[str, int]]:
    """The inputs with every dynamic axis named, and the size of each name; axes of one symbol but two sizes get names of their own."""
    named: list[onnx.ValueInfoProto] = []
    sizes: dict[str, int] = {}
    for value in inputs:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        places = zip(symbols(value), shapes[value.name], copy.type.tensor_type.shape.dim, strict=True)
        for axis, (symbol, size, dim) in enumerate(places):
            if isinstance(symbol, str):
                dim.dim_param = symbol if sizes.get(symbol, size) == size else f"{value.name}:{axis}"
                sizes[dim.dim_param] = size
        named.append(copy)
    return named, sizes


def _second_feeds(
    session: Session | Probe,
    inputs: Sequence[onnx.ValueInfoProto],
    sizes: dict[str, int],
    seed: int,
    high: int,
) -> Feeds | None:
    """Feeds that differ in as many dynamic dimensions as the model accepts: all at once, else one after the other.

    Dimensions of one size that cannot change alone are tried together: inputs may share one that has no name.
    """

    def works(trial: dict[str, int]) -> Feeds | None:
        feeds = random_feeds(inputs, trial, seed + 1, high)
        try:
            session.run(feeds)
        except BadInputError:
            return None
        return feeds

    if not sizes:
        return works({})
    # twice the size first: one more pixel may leave all sizes behind a stride as they were, and they would pass for static
    for factor, more in ((2, 0), (1, 32)):
        feeds = works({name: n + 1 if n <= 2 else factor * n + more for name, n in sizes.items()})
        if feeds is not None:
            return feeds
    current, found = dict(sizes), None
    stuck = []
    for name, n in sizes.items():
        changed = _changed(works, current, [name], n)
        if changed is None:
            stuck.append(name)
        else:
            current, found = changed
    for n in sorted({sizes[name] for name in stuck}):
        alike = [name for name in stuck if sizes[name] == n]
        changed = _changed(works, current, alike, n) if len(alike) > 1 else None
        if changed is not None:
            current, found = changed
    return works(sizes) if found is None else found


def _changed(
    works: Callable[[dict[str, int]], Feeds | None], current: dict[str, int], names: list[str], n: int
) -> tuple[dict[str, int], Feeds] | None:
    """`current` with another size than `n` for these, and feeds of it that work."""
    for other in (2 * n if n > 2 else n + 1, max(1, n // 2), n + 32, n + 1024, n + 1):
        trial = current | dict.fromkeys(names, other)
        feeds = works(trial) if other != n else None
        if feeds is not None:
            return trial, feeds
    return None
