"""ONNX Runtime, and nothing else of the package imports it: sessions, feeds, observation, latency."""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxprune.core.errors import BadInputError
from onnxprune.core.flat import SEPARATOR, captured, shell, show_shapes, subgraphs
from onnxprune.core.graphio import save_model
from onnxprune.core.model import LoadedModel
from onnxprune.core.observation import Array, Feeds, Observation
from onnxprune.core.tensors import StoredSparseValues

ort.set_default_logger_severity(4)

VERSION: str = ort.__version__
SIZES = (16, 32, 64, 48, 128, 96, 224, 320, 512, 576, 1024, 8, 4, 2, 1)
MAX_ELEMENTS = 1 << 30
IMAGE_SIZES = (64, 128, 96, 48, 224, 256, 320, 32, 512, 640, 16, 1)


class Session:
    """One loaded model; errors of ONNX Runtime come out as one-sentence `BadInputError`s."""

    def __init__(
        self,
        proto: ModelProto | bytes,
        folder: str | None = None,
        *,
        optimized: bool = False,
        threads: int = 0,
        what: str = "the model",
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        data = proto if isinstance(proto, bytes) else proto.SerializeToString()
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated types
            raise BadInputError(
                f"ONNX Runtime {VERSION} cannot load {what}: {first_line(error)} Give a model that it can load."
            ) from None
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self.output_types: dict[str, str] = {o.name: o.type for o in self._session.get_outputs()}

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Array]:
        """The values of `outputs` (all by default)."""
        try:
            return list(self._session.run(outputs, feeds))
        except Exception as error:
            raise BadInputError(
                f"ONNX Runtime {VERSION} cannot run the model: {first_line(error)} "
                "Give a model that it can run, or inputs that fit (--data, --input-shape)."
            ) from None

    def accepts(self, feeds: Feeds) -> bool:
        """Does the model run on these?"""
        try:
            self.run(feeds)
        except BadInputError:
            return False
        return True


def folder_of(model: LoadedModel) -> str | None:
    return str(model.folder) if model.has_external_data and model.folder else None


def first_line(error: BaseException) -> str:
    """The gist of a runtime error: its first line, without the status prefix."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    line = text[0].split("] : ")[-1]
    if " : " in line and line.startswith("[ONNXRuntimeError]"):
        line = line.split(" : ", 3)[-1]
    return line[:300].rstrip(". ") + "."


# ---------------------------------------------------------------- feeds


def graph_inputs(proto: ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that must be fed: initializers that are listed as inputs are left out."""
    known = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    return [v for v in proto.graph.input if v.name not in known]


def symbols(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes of an input's axes: an int where static, else the dimension's symbol (made up where it has none)."""
    dims: list[int | str] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param or ("batch" if axis == 0 else f"{value.name}:{axis}"))
    return dims


def random_feeds(
    proto: ModelProto,
    sizes: dict[str, int],
    seed: int = 0,
    high: int = 100,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> Feeds:
    """Random inputs: normal floats, integers in [1, high), True; `sizes` gives every symbol's size, `shapes` whole shapes."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in graph_inputs(proto):
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
        if math.prod(shape) > MAX_ELEMENTS:
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
    return feeds


def rescaled(pair: tuple[Feeds, Feeds], seed: int, scale: float) -> tuple[Feeds, Feeds]:
    """New random values of the same shapes: uniform floats in [0, scale); other types stay."""
    rng = np.random.default_rng(seed)

    def redraw(feeds: Feeds) -> Feeds:
        return {
            n: (scale * rng.random(v.shape)).astype(v.dtype) if v.dtype.kind == "f" else v for n, v in feeds.items()
        }

    return redraw(pair[0]), redraw(pair[1])


def candidate_sizes(proto: ModelProto) -> Iterator[dict[str, int]]:
    """Sizes worth trying for the dynamic dimensions, likeliest first; the batch is 2, else 1."""
    names: dict[str, tuple[int, ...]] = {}
    for value in graph_inputs(proto):
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
    if 1 < len(others) <= 3:
        for combination in itertools.product(*(names[n][:10] for n in others)):
            yield dict.fromkeys(batch, 1) | dict(zip(others, combination, strict=True))


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
    proto = model.proto
    for name in shapes or {}:
        if name not in {v.name for v in graph_inputs(proto)}:
            known = ", ".join(v.name for v in graph_inputs(proto))
            raise BadInputError(
                f"--input-shape names '{name}', which is no input of the model; its inputs are: {known}."
            )
    session = session or Session(proto, folder_of(model))
    error: BadInputError | None = None
    for high in (100, 10, 2, 1):
        for sizes in candidate_sizes(proto):
            first = random_feeds(proto, sizes, seed, high, shapes)
            try:
                session.run(first)
            except BadInputError as failure:
                error = error or failure
                continue
            observed = {name: array.shape for name, array in first.items()}
            return first, vary(session, proto, observed, seed, high) or first
        if all(v.dtype.kind not in "iu" for v in random_feeds(proto, sizes, seed, 2, shapes).values()):
            break
    hint = "" if shapes else " Give working shapes with --input-shape name:1,3,224,224 or inputs with --data."
    raise BadInputError(f"No random input runs through the model. {error}{hint}")


def vary(
    session: Session | Probe, proto: ModelProto, shapes: dict[str, tuple[int, ...]], seed: int, high: int = 100
) -> Feeds | None:
    """Random feeds that differ from `shapes` in the dynamic dimensions, as far as the model accepts them."""
    sizes: dict[str, int] = {}
    for value in graph_inputs(proto):
        for dim, size in zip(symbols(value), shapes[value.name], strict=True):
            if isinstance(dim, str):
                sizes.setdefault(dim, size)
    # integers below `high`, or below less where those are out of some table's range
    integers = any(v.dtype.kind in "iu" for v in random_feeds(proto, sizes, seed, 2).values())
    for bound in [h for h in (high, high // 2, 10, 4, 2, 1) if 1 <= h <= high] if integers else [high]:
        found = _second_feeds(session, proto, sizes, seed, bound)
        if found is not None:
            return found
    return None


def _second_feeds(
    session: Session | Probe,
    proto: ModelProto,
    sizes: dict[str, int],
    seed: int,
    high: int,
) -> Feeds | None:
    """Feeds that differ in as many dynamic dimensions as the model accepts: all at once, else one after the other."""

    def works(trial: dict[str, int]) -> Feeds | None:
        feeds = random_feeds(proto, trial, seed + 1, high)
        try:
            session.run(feeds)
        except BadInputError:
            return None
        return feeds

    if not sizes:
        return None
    # twice the size first: one more pixel may leave all sizes behind a stride as they were, and they would pass for static
    for factor, more in ((2, 0), (1, 32)):
        feeds = works({name: n + 1 if n <= 2 else factor * n + more for name, n in sizes.items()})
        if feeds is not None:
            return feeds
    current, found = dict(sizes), None
    for name, n in sizes.items():
        for other in (2 * n if n > 2 else n + 1, max(1, n // 2), n + 32, n + 1024, n + 1):
            feeds = works(current | {name: other})
            if feeds is not None:
                current[name], found = other, feeds
                break
    return found


# ---------------------------------------------------------------- observation


class Probe:
    """A model in ONNX Runtime that tells the shape of every tensor and the value of the `wanted` ones (by key).

    Shapes are read by `Shape` nodes inside the graph, so that no activation leaves the runtime. Subgraphs are run
    as models of their own, on the values that they capture. Feeds that were tried already are not run again.
    """

    def __init__(self, model: LoadedModel, wanted: set[str], typed: set[str]) -> None:
        self.model, self.wanted, self.typed = model, wanted, typed
        if not model.proto.graph.output:
            raise BadInputError("The model has no outputs, so there is nothing to keep; give a model that has some.")
        try:
            self._top = _Probed(model, model.proto.graph, None, {}, "", wanted, typed)
        except BadInputError:
            Session(model.proto, folder_of(model))  # says it in the model's own words, if it is the model's fault
            raise

    def run(self, feeds: Feeds) -> list[Array]:
        """Run the model; raises `BadInputError` where it does not accept the feeds."""
        return self._top.run(feeds)

    def observation(self, feeds: tuple[Feeds, Feeds]) -> Observation:
        """What both feeds show."""
        both = [feeds[0]] if feeds[1] is feeds[0] else list(feeds)
        seen = self._top.observe(both)
        return Observation(seen[0][0], seen[-1][0], seen[0][1], seen[-1][1], seen[0][2], feeds)


def observe(model: LoadedModel, feeds: tuple[Feeds, Feeds], wanted: set[str], typed: set[str]) -> Observation:
    """Run the model on both feeds, see `Probe`."""
    return Probe(model, wanted, typed).observation(feeds)


Seen = tuple[dict[str, tuple[int, ...]], dict[str, Array], dict[str, Any]]


class _Probed:
    """One graph of the model with its shapes and wanted values as outputs.

    `fed`: values that a subgraph gets (inputs and captured tensors), for their types; None for the model itself.
    """

    def __init__(
        self,
        model: LoadedModel,
        graph: GraphProto,
        fed: Feeds | None,
        outer: dict[str, TensorProto],
        path: str,
        wanted: set[str],
        typed: set[str],
    ) -> None:
        self.model, self.graph, self.path, self.wanted, self.typed = model, graph, path, wanted, typed
        self.captured = captured(graph)
        self.initializers = dict(outer) | {t.name: t for t in graph.initializer}
        self.done: list[tuple[Feeds, list[Array]]] = []
        proto = ModelProto()
        proto.CopyFrom(shell(model.proto))
        proto.graph.CopyFrom(graph)
        del proto.graph.value_info[:]
        for name in sorted(self.captured & set(outer)):
            proto.graph.initializer.append(outer[name])
        if fed is not None:
            proto.graph.name = proto.graph.name or "subgraph"
            del proto.graph.input[:]
            for name, value in fed.items():
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                proto.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
        needed: set[str] = set()
        for node in graph.node:
            for _, sub in subgraphs(node):
                needed |= captured(sub) | set(node.input)
        sequences = _sequences(model.proto, graph)
        self.produced = [o for node in graph.node for o in node.output if o and o not in sequences]
        self.values = [o for o in self.produced if o in needed or path + o in wanted]
        dtyped = [o for o in self.produced if path + o in typed and o not in self.values]
        del proto.graph.output[:]
        self.outputs = [*show_shapes(proto.graph, self.produced), *self.values]
        for name in self.values + dtyped:
            proto.graph.output.append(helper.make_empty_tensor_value_info(name))
        self.session = Session(proto, folder_of(model), what="the model with its intermediate results as outputs")
        self.dtypes = {path + n: self.session.output_types[n] for n in dtyped + self.values}

    def run(self, feeds: Feeds) -> list[Array]:
        for known, results in self.done:
            if known is feeds:
                return results
        results = self.session.run(feeds, self.outputs)
        self.done.append((feeds, results))
        return results

    def observe(self, both: list[Feeds]) -> list[Seen]:
        """Shapes, wanted values and types, for each of the feeds."""
        path = self.path
        constants = {path + t.name: tuple(t.dims) for t in self.graph.initializer}
        seen: list[Seen] = []
        known: list[Feeds] = []
        for feeds in both:
            results = self.run(feeds)
            shapes = {path + n: tuple(int(d) for d in s) for n, s in zip(self.produced, results, strict=False)}
            shapes |= {path + n: v.shape for n, v in feeds.items() if n not in self.captured} | constants
            found = dict(zip(self.values, results[len(self.produced) :], strict=True))
            seen.append((shapes, {path + n: v for n, v in found.items()}, self.dtypes))
            known.append(found | feeds)
        for node in self.graph.node:
            first = next((o for o in node.output if o), "")
            for name, sub in subgraphs(node):
                inner = [
                    {n: v[n] for n in captured(sub) if n in v} | _body_feeds(node, sub, v, self.initializers)
                    for v in known
                ]
                more = self._inside(sub, inner, f"{path}{first}.{name}{SEPARATOR}")
                for mine, theirs in zip(seen, more, strict=False):
                    mine[0].update(theirs[0])
                    mine[1].update(theirs[1])
                    mine[2].update(theirs[2])
        return seen

    def _inside(self, sub: GraphProto, inner: list[Feeds], path: str) -> list[Seen]:
        """The same of a subgraph; nothing where it does not run on these inputs: its rules pin."""
        names = {v.name for v in sub.input} | captured(sub)
        inner = [{n: v for n, v in feeds.items() if n in names} for feeds in inner]
        try:
            return _Probed(self.model, sub, inner[0], self.initializers, path, self.wanted, self.typed).observe(inner)
        except BadInputError:
            return []


def _body_feeds(node: onnx.NodeProto, body: GraphProto, known: Feeds, initializers: dict[str, TensorProto]) -> Feeds:
    """What a loop body is fed in its first iteration; {} for a body without inputs (If)."""

    def value(name: str) -> Array | None:
        if name in known:
            return known[name]
        return numpy_helper.to_array(initializers[name]) if name in initializers else None

    if not body.input:
        return {}
    outer = [value(name) for name in node.input]
    count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), None)
    if count is None:  # Loop: iteration number, condition, then the carried values
        start: list[Array | None] = [np.array(0, np.int64), np.array(True), *outer[2:]]
    else:  # Scan: states, then one slice of each scanned input
        axes = next((list(a.ints) for a in node.attribute if a.name == "scan_input_axes"), [0] * count)
        states = len(outer) - count
        scanned = [None if v is None else np.take(v, 0, axis=x) for v, x in zip(outer[states:], axes, strict=True)]
        start = outer[:states] + scanned
    return {i.name: v for i, v in zip(body.input, start, strict=False) if v is not None}


def _sequences(proto: ModelProto, graph: GraphProto) -> set[str]:
    """Outputs that are sequences or optionals, of which no Shape can be taken.

    An output that may be either (Identity) is one if an input is.
    """
    found: set[str] = set()
    for node in graph.node:
        version = next((o.version for o in proto.opset_import if o.domain == node.domain), 1)
        key = (node.op_type, version, node.domain)
        if key not in _CONTAINERS:
            _CONTAINERS[key] = _containers(*key)
        always, sometimes = _CONTAINERS[key]
        if always or (sometimes and any(i in found for i in node.input)):
            found.update(node.output)
    return found


def _containers(op: str, version: int, domain: str) -> tuple[bool, bool]:
    """Are an operator's outputs always, or sometimes, something else than tensors?"""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return False, False
    types = {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}
    allowed = [t for o in schema.outputs for t in types.get(o.type_str, [o.type_str])]
    tensors = [t.startswith(("tensor(", "sparse_tensor(")) for t in allowed]
    return not any(tensors), not all(tensors)


_CONTAINERS: dict[tuple[str, int, str], tuple[bool, bool]] = {}


# ---------------------------------------------------------------- quantization


def quantize(proto: ModelProto, folder: str | None, samples: Sequence[Feeds], what: str = "the model") -> ModelProto:
    """ONNX Runtime's static quantization: 8-bit weights per output channel, 8-bit activations, calibrated on the samples.

    The result is in QDQ form (QuantizeLinear and DequantizeLinear around float operators), which ONNX Runtime's own
    documentation names as the first choice on CPUs. Constants that a batch normalization could be folded into are folded.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        left = iter(samples)

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as temporary, _quiet():
        plain, ready, done = (f"{temporary}/{name}.onnx" for name in ("plain", "ready", "done"))
        try:
            save_model(
                _dense(proto, folder), Path(plain), folder=Path(folder) if folder else None, apart=folder is not None
            )
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                done,
                Samples(),
                quant_format=QuantFormat.QDQ,
                per_channel=opset >= 13,  # the opset that gave scales an axis
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            result = onnx.load(done)
        except Exception as error:  # the quantizer raises many unrelated types
            raise BadInputError(
                f"ONNX Runtime {VERSION} cannot quantize {what}: {first_line(error)} Leave out --then-quantize."
            ) from None
    _declare(result, proto)
    Session(result, None, optimized=True, what=f"{what}, quantized")
    return result


def _dense(proto: ModelProto, folder: str | None) -> ModelProto:
    """Without sparse initializers, which the quantizer does not look for."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    graphs = [copy.graph]
    for graph in graphs:
        for sparse in graph.sparse_initializer:
            stored = StoredSparseValues(sparse, Path(folder) if folder else None)
            graph.initializer.append(numpy_helper.from_array(stored.load(), sparse.values.name))
        del graph.sparse_initializer[:]
        graphs += [sub for node in graph.node for _, sub in subgraphs(node)]
    return copy


def _declare(model: ModelProto, original: ModelProto) -> None:
    """Inputs and outputs as the original declares them: the quantizer writes what it inferred, for sizes that may differ."""
    for theirs, mine in ((original.graph.input, model.graph.input), (original.graph.output, model.graph.output)):
        known = {v.name: v for v in theirs}
        for value in mine:
            if value.name in known:
                value.CopyFrom(known[value.name])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that the quantizer logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------- latency


def latency(
    sessions: Sequence[Session], feeds: Feeds, repeats: int = 20, warmup: int = 3, seconds: float = 10.0
) -> list[list[float]]:
    """Milliseconds per run of each session, taken in turn so that drift of the machine hits all of them.

    Stops early, after at least three counted rounds, once `seconds` have passed.
    """
    times: list[list[float]] = [[] for _ in sessions]
    begin = time.perf_counter()
    for k in range(warmup + repeats):
        if k >= warmup + 3 and time.perf_counter() - begin > seconds:
            break
        for session, series in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            if k >= warmup:
                series.append(1000 * (time.perf_counter() - start))
    return times
