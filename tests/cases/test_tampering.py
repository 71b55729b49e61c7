"""What would have to go wrong for `verify` to accept a wrong file: every way to change one is tried, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import Budget, OnnxPruneError
from tests.oracle import graphs, net

TEXT = """g (float[N,3,6,6] image, bool other) => (float[N,5] scores, float[N,4] side)
    <float[16,3,3,3] w1, float[16] b1, float[24,16,3,3] w2, float[24] b2, float[24,10] head, float[10] bias, float[10,5] last,
     float[24,4] then_w, float[24,4] else_w> {
    c1 = Conv<pads=[1,1,1,1]>(image, w1, b1)
    r1 = LeakyRelu<alpha=0.1>(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    h = MatMul(f, head)
    a = Add(h, bias)
    t = Tanh(a)
    scores = MatMul(t, last)
    side = If (other) <
        then_branch = t () => (float[N,4] ty) { ty = MatMul(f, then_w) },
        else_branch = e () => (float[N,4] ey) { es = MatMul(f, else_w) ey = Relu(es) }
    >
}"""
Change = Callable[[onnx.ModelProto], None]


def initializer(name: str, change: Callable[[np.ndarray], None]) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        every = (t for graph in graphs(model.graph) for t in graph.initializer)
        tensor = next(t for t in every if t.name.removesuffix("_refit") == name)
        array = numpy_helper.to_array(tensor).copy()
        change(array)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return apply


def bump(array: np.ndarray) -> None:
    array.flat[0] += 0.5


def attribute(op: str, name: str, value: object) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        (node,) = (n for n in model.graph.node if n.op_type == op)
        (old,) = (a for a in node.attribute if a.name == name)
        old.CopyFrom(helper.make_attribute(name, value))

    return apply


def in_branch(model: onnx.ModelProto) -> None:
    """Whichever branch is not taken, one of the two changes is there."""
    for node in model.graph.node:
        if node.op_type == "If":
            for branch in node.attribute:
                last = branch.g.node[-1]
                made = last.output[0]
                last.output[0] = f"{made}_raw"
                branch.g.node.append(helper.make_node("Neg", [f"{made}_raw"], [made]))
                return


def metadata(model: onnx.ModelProto) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "license", "none"


CHANGES: dict[str, Change] = {
    "a kernel": initializer("w1", bump),
    "a bias": initializer("bias", bump),
    "a weight of a branch": initializer("then_w", bump),
    "a weight of the other branch": initializer("else_w", bump),
    "a number in the last bit": initializer("w2", lambda a: np.copyto(a, np.nextafter(a, np.float32(9)))),
    "an attribute": attribute("LeakyRelu", "alpha", 0.2),
    "a node in a branch": in_branch,
    "metadata": metadata,
    "the opset": lambda model: setattr(model.opset_import[0], "version", 16),
    "the name of an output": lambda model: setattr(model.graph.output[0], "name", "score"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tampering")
    onnx.save(net(TEXT), folder / "m.onnx")
    feeds = {"image": np.random.default_rng(0).normal(size=(16, 3, 6, 6)).astype(np.float32), "other": np.array(True)}
    np.savez(folder / "x.npz", **feeds)
    for name, options in {"plain": {"recover": "none"}, "repaired": {"data": folder / "x.npz"}}.items():
        onnxprune.prune(
            folder / "m.onnx",
            Budget("macs", 0.5),
            output=folder / f"{name}.onnx",
            plan=folder / f"{name}.json",
            round_to=1,
            benchmark=False,
            **options,
        )
    return {p.name: p for p in folder.iterdir()}


@pytest.mark.parametrize("kind", ["plain", "repaired"])
def test_untouched_files_are_accepted(made: dict[str, Path], kind: str) -> None:
    for data in (None, made["x.npz"]):
        onnxprune.verify(made["m.onnx"], made[f"{kind}.onnx"], made[f"{kind}.json"], data=data)


@pytest.mark.parametrize("kind", ["plain", "repaired"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_file_is_refused(made: dict[str, Path], tmp_path: Path, kind: str, what: str) -> None:
    model = onnx.load(made[f"{kind}.onnx"])
    CHANGES[what](model)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(OnnxPruneError) as caught:
        onnxprune.verify(made["m.onnx"], tmp_path / "changed.onnx", made[f"{kind}.json"], data=made["x.npz"])
    assert caught.value.exit_code in (2, 4)


def test_a_changed_byte_of_external_data_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    onnx.save(
        onnx.load(made["m.onnx"]), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
    )
    plan = tmp_path / "p.json"
    onnxprune.prune(
        tmp_path / "m.onnx",
        Budget("ratio", 0.5),
        output=tmp_path / "o.onnx",
        plan=plan,
        recover="none",
        round_to=1,
        benchmark=False,
    )
    onnxprune.verify(tmp_path / "m.onnx", tmp_path / "o.onnx", plan)
    (data,) = (p for p in tmp_path.iterdir() if p.name.startswith("o.onnx") and p.name != "o.onnx")
    changed = bytearray(data.read_bytes())
    changed[1] ^= 1
    data.write_bytes(changed)
    with pytest.raises(OnnxPruneError):
        onnxprune.verify(tmp_path / "m.onnx", tmp_path / "o.onnx", plan)
