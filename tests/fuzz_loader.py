"""Throw damaged models at `load`: it returns, or it refuses in one sentence. It never does anything else.

    python tests/fuzz_loader.py 5000          # that many cases; prints the count by outcome

Each case has a seed and can be repeated alone: `python tests/fuzz_loader.py --case 1234`. Half of them damage the
bytes (flips, cuts, insertions, splices with another model), half edit one to four fields of the parsed message. A
model that is accepted is also imported, its constants read, and exported again, which must give the same bytes. The
cases run in child processes, so that a crash or a hang in compiled code is caught as well.
"""

import argparse
import faulthandler
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from onnxprune.errors import OnnxPruneError
from onnxprune.model.importer import export_model, import_graph
from onnxprune.model.load import load

TIME_LIMIT = 20  # seconds for one case; the slowest takes a small part of one
BATCH = 250

TEXTS = [
    """<ir_version: 8, opset_import: ["": 17], producer_name: "t"> net (float[N,3,8,8] x) => (float[N,2] y)
    <float[4,3,3,3] w, float[4] b = {1, 2, 3, 4}, int64[2] s = {0, -1}> {
        c = Conv<pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Reshape(p, s)
        k = Constant<value = float[4,2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
        one = Constant<value_float = 1.0> ()
        m = MatMul(f, k)
        y = Add(m, one)
    }""",
    """<ir_version: 8, opset_import: ["": 17]> branchy (float[N,4] x, bool c) => (float[N,4] y)
    <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> {
        a = MatMul(x, w)
        y = If(c) <
            then_branch = yes () => (float[N,4] t) { q = MatMul(a, w) t = Relu(q) },
            else_branch = no () => (float[N,4] e) <float[4] q = {1, 2, 3, 4}> { e = Add(x, q) }
        >
    }""",
    """<ir_version: 8, opset_import: ["": 17]> loopy (float[4] x, int64 n, bool c) => (float[4] y, float[K,4] z) {
        y, z = Loop(n, c, x) <body = step (int64 i, bool go, float[4] v) => (bool more, float[4] u, float[4] o)
            { more = Identity(go) u = Add(v, x) o = Relu(u) }>
        s = SequenceEmpty<dtype = 1> ()
    }""",
    """<ir_version: 8, opset_import: ["": 17, "local": 1]> caller (float[N] x) => (float[N] y) {
        a = local.twice(x)
        y = local.twice(a)
    }
    <domain: "local", opset_import: ["": 17, "local": 1]> twice (u) => (v) { w = local.one(u) v = local.one(w) }
    <domain: "local", opset_import: ["": 17]> one (u) => (v) { v = Relu(u) }""",
]


def models() -> list[ModelProto]:
    """Small models that between them use every part of the format that `load` looks at."""
    return [*(_with_weights(parser.parse_model(text)) for text in TEXTS), _exotic(), _external()]


def _with_weights(model: ModelProto) -> ModelProto:
    """The parser declares a tensor without values in value_info; make each such tensor an initializer."""
    for value in model.graph.value_info:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = np.linspace(-1, 1, int(np.prod(dims)), dtype=np.float32).reshape(dims)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    return model


def _exotic() -> ModelProto:
    """Packed types, a sparse initializer, strings, sequence and optional inputs, metadata, annotations."""
    seq = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, ["N", 4]))
    packed = helper.make_tensor("q", TensorProto.INT4, [3, 3], [1, -2, 3, -4, 5, -6, 7, -8, 0])
    half = numpy_helper.from_array(np.ones((2, 2), np.float16), "h")
    text = numpy_helper.from_array(np.array(["a", "b"], dtype=object), "t")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "sp"),
        numpy_helper.from_array(np.array([1, 5], np.int64), "sp_at"),
        [2, 4],
    )
    nodes = [
        helper.make_node("SequenceAt", ["s", "i"], ["e"], "at", doc_string="first"),
        helper.make_node("Clip", ["e", "", ""], ["y"], "clip"),
        helper.make_node("Mystery", ["e", "q", "t"], ["", "m"], "m", domain="my.own", k=[1, 2], v="x"),
    ]
    graph = helper.make_graph(
        nodes,
        "exotic",
        [
            helper.make_value_info("s", seq),
            helper.make_value_info("o", helper.make_optional_type_proto(seq)),
            helper.make_tensor_value_info("h", TensorProto.FLOAT16, [2, 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [packed, half, text, numpy_helper.from_array(np.array(0), "i")],
        "documented",
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["N", 4])],
        sparse_initializer=[sparse],
    )
    note = graph.quantization_annotation.add(tensor_name="e")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="h")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("my.own", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, {"a": "b"})
    return model


def _external() -> ModelProto:
    text = """<ir_version: 8, opset_import: ["": 17]> ext (float[N,4] x) => (float[N,2] y)
        <float[4,2] w> { y = MatMul(x, w) }"""
    model = _with_weights(parser.parse_model(text))
    w = model.graph.initializer[0]
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "8"), ("length", "32")):
        w.external_data.add(key=key, value=value)
    return model


WORDS = [
    "",
    "x",
    "y",
    "w",
    "a",
    "\0",
    "é" * 40,
    "../w.bin",
    "/etc/passwd",
    "w.bin",
    "-1",
    "99999999999999999999",
    "n" * 5000,
]
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    13,
    21,
    28,
    64,
    127,
    255,
    2**15,
    2**31 - 1,
    -(2**31),
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
]


def mutated(case: int, seeds: list[ModelProto]) -> bytes:
    """The bytes of one damaged model."""
    rng = random.Random(case)
    model = rng.choice(seeds)
    if case % 2:
        return _mutate_bytes(model.SerializeToString(), rng.choice(seeds).SerializeToString(), rng)
    copy = ModelProto()
    copy.CopyFrom(model)
    for _ in range(rng.randint(1, 4)):
        _mutate_field(copy, rng)
    return bytes(copy.SerializeToString())


def _mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(out) + 1) if out else 0
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : None if rng.random() < 0.2 else at + rng.randrange(1, 9)]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            start = rng.randrange(len(other))
            out[at:at] = other[start : start + rng.randrange(1, 200)]
        else:
            start = rng.randrange(len(data))
            piece = data[start : start + rng.randrange(1, 200)]
            out[at : at + len(piece)] = piece
    return bytes(out)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if hasattr(value, "append") else [value]:
                yield from _messages(child)


def _mutate_field(model: ModelProto, rng: random.Random) -> None:
    """Change, add, remove, double or swap one field of one message anywhere in the model."""
    message = rng.choice(list(_messages(model)))
    present = [f for f, _ in message.ListFields()]
    fields: list[Any] = present if present and rng.random() < 0.8 else list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return
    items = getattr(message, field.name)
    is_repeated = hasattr(items, "append")
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        same = [m for m in _messages(model) if m.DESCRIPTOR is field.message_type]
        copy = field.message_type._concrete_class()
        if same and rng.random() < 0.9:
            copy.CopyFrom(rng.choice(same))
        if not is_repeated:
            items.CopyFrom(copy)
            return
        if items and rng.random() < 0.4:
            del items[rng.randrange(len(items))]
        else:
            items.append(copy)
        return
    value = _scalar(field, message, model, rng)
    if not is_repeated:
        setattr(message, field.name, value)
        return
    action = rng.randrange(3)
    if action == 0 and items:
        del items[rng.randrange(len(items))]
    elif action == 1 and items:
        items[rng.randrange(len(items))] = value
    else:
        items.append(value)


def _scalar(field: Any, message: Message, model: ModelProto, rng: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        names = [o for n in model.graph.node for o in (*n.output, *n.input, n.op_type)]
        return rng.choice(names if names and rng.random() < 0.6 else WORDS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice([b"", b"\xff\xfe", rng.randbytes(rng.randrange(64)), b"\0\0\xc0\x7f" * 4])
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    number = rng.choice(NUMBERS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT32:
        return (number + 2**31) % 2**32 - 2**31
    return number % 2**64 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else number


def run_case(case: int, seeds: list[ModelProto], folder: Path) -> str:
    """accepted, or refused with the error's name; anything else is the exception that should not be."""
    path = folder / "m.onnx"
    path.write_bytes(mutated(case, seeds))
    try:
        model = load(path)
    except OnnxPruneError as e:
        message = str(e)
        is_sentence = message.endswith(".") and "\n" not in message and len(message) < 1200
        return f"refused: {type(e).__name__}" if is_sentence else f"BAD MESSAGE {message!r}"
    graph = import_graph(model)
    for tensor in graph.tensors().values():
        if hasattr(tensor, "values"):
            assert tensor.values.shape == tuple(tensor.shape)
    out = export_model(graph, model.proto)
    if out.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True):
        return "accepted, same bytes back"
    # protobuf keeps the bytes of unknown fields, also where they are longer than need be
    return "accepted, same message back" if out == model.proto else "NOT THE SAME BACK"


def _work(first: int, last: int) -> None:
    seeds = models()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "w.bin").write_bytes(np.arange(10, dtype=np.float32).tobytes())
        for case in range(first, last):
            faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
            print("start", case, flush=True)
            try:
                outcome = run_case(case, seeds, folder)
            except Exception as e:
                outcome = f"ESCAPED {type(e).__name__}: {e}".replace("\n", " ")[:300]
            print("done", outcome, flush=True)
    faulthandler.cancel_dump_traceback_later()


def run(count: int, first: int = 0) -> tuple[Counter[str], dict[int, str]]:
    """Counts by outcome, and the cases that went wrong."""
    outcomes: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    case, end = first, first + count
    while case < end:
        last = min(case + BATCH, end)
        child = subprocess.run(
            [sys.executable, __file__, "--work", str(case), str(last)],
            capture_output=True,
            text=True,
            check=False,
        )
        if not child.stdout:
            raise RuntimeError(f"the child did not start: {child.stderr[-2000:]}")
        for line in child.stdout.splitlines():
            kind, _, text = line.partition(" ")
            if kind == "start":
                case = int(text)
            elif kind == "done":
                outcomes[text if text.startswith(("accepted", "refused")) else "WRONG"] += 1
                if not text.startswith(("accepted", "refused")):
                    wrong[case] = text
        if child.returncode != 0:
            outcomes["WRONG"] += 1
            wrong[case] = f"child ended with {child.returncode}: {child.stderr[-300:]}"
            case += 1
        else:
            case = last
    return outcomes, wrong


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("count", type=int, nargs="?", default=1000)
    args.add_argument("--first", type=int, default=0)
    args.add_argument("--case", type=int)
    args.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    given = args.parse_args()
    if given.work:
        _work(*given.work)
    elif given.case is not None:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "w.bin").write_bytes(bytes(40))
            print(run_case(given.case, models(), Path(name)))
    else:
        counts, failures = run(given.count, given.first)
        for outcome, n in sorted(counts.items()):
            print(f"{n:6d}  {outcome}")
        for case, text in failures.items():
            print(f"case {case}: {text[:300]}")
        sys.exit(bool(failures))
