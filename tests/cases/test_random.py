"""Nodes that draw random numbers: compared with a seed each, in memory only. What is drawn for a tensor's shape leaves with that tensor;
other axes that are drawn for stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget, VerificationError
from onnxprune.model.draws import drawn, draws, seeded
from onnxprune.model.loaded import Model
from onnxprune.runtime import session as sessions
from tests.oracle import net

DRAWS = {
    "normal, like": "n = RandomNormalLike(h) d = Mul(n, h)",
    "uniform, like": "n = RandomUniformLike(h) d = Add(n, h)",
    "normal": "n = RandomNormal<shape=[1,16]>() d = Add(n, h)",
    "uniform": "n = RandomUniform<shape=[16]>() d = Add(n, h)",
    "bernoulli": "p = Sigmoid(h) n = Bernoulli(p) d = Mul(n, h)",
    "multinomial": "i = Multinomial<sample_size=16>(h) n = Cast<to=1>(i) d = Add(n, h)",
    "dropout": "d, mask = Dropout(h, ratio, training)",
    "dropout without ratio": "d = Dropout(h, , training)",
    "in a branch": """d = If(training) <
        then_branch = t () => (float[N,16] o) { m = RandomNormalLike(h) o = Add(m, h) },
        else_branch = e () => (float[N,16] z) { z = Identity(h) }
    >""",
}


FOLLOW = (
    "normal, like",
    "uniform, like",
    "bernoulli",
    "in a branch",
)  # they draw for what they read, so its units may leave


def model(name: str) -> onnx.ModelProto:
    """Two linear layers that can lose units around one whose 16 outputs are drawn for."""
    constants = {"ratio": np.float32(0.5), "training": np.array(True)}
    text = f"""g (float[N,8] x) => (float[N,5] y)
        <float[8,24] u, float[24,16] v, float[16,32] w, float[32,5] s, float ratio, bool training> {{
        a = MatMul(x, u)
        b = Relu(a)
        h = MatMul(b, v)
        {DRAWS[name]}
        e = MatMul(d, w)
        f = Relu(e)
        y = MatMul(f, s)
    }}"""
    return net(text, constants=constants)


@pytest.mark.parametrize("name", DRAWS)
def test_models_that_draw_random_numbers_are_pruned_and_proved(name: str, tmp_path: Path) -> None:
    original = model(name)
    before = original.SerializeToString()
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32))
    result = onnxprune.prune(original, Budget("ratio", 0.5), round_to=1, benchmark=False)
    assert sorted(g.units for g in result.plan.groups if g.removed) == [*([16] if name in FOLLOW else []), 24, 32]
    assert result.report.check is not None and result.report.check.error < 1e-5
    assert onnxprune.verify(original, result.model, result.plan).error < 1e-5
    repaired = onnxprune.prune(original, Budget("macs", 0.5), round_to=1, data=tmp_path / "x.npz", benchmark=False)
    repair = repaired.report.repair
    assert repair is not None and repair.damage.after < repair.damage.before
    again = onnxprune.prune(original, Budget("macs", 0.5), round_to=1, data=tmp_path / "x.npz", benchmark=False)
    assert again.model.SerializeToString() == repaired.model.SerializeToString()
    sparse = onnxprune.sparsify(original, threshold=1e-9, data=tmp_path / "x.npz", benchmark=False)
    assert sparse.report.difference.error < 1e-5, "nothing but zeros was set to zero"
    for made in (result.model, repaired.model, sparse.model):
        assert seeded(made).SerializeToString() != made.SerializeToString(), "the written file has no seeds"
    assert original.SerializeToString() == before


def test_seeds_of_the_users_stay() -> None:
    original = model("normal, like")
    node = next(n for n in original.graph.node if n.op_type == "RandomNormalLike")
    node.attribute.append(onnx.helper.make_attribute("seed", 7.0))
    assert seeded(original).SerializeToString() == original.SerializeToString() and draws(original)
    result = onnxprune.prune(original, Budget("ratio", 0.5), round_to=1, benchmark=False)
    kept = next(n for n in result.model.graph.node if n.op_type == "RandomNormalLike")
    assert [(a.name, a.f) for a in kept.attribute] == [("seed", 7.0)]


def test_dropout_at_inference_draws_nothing() -> None:
    original = model("dropout")
    assert draws(original)
    for tensor in original.graph.initializer:
        if tensor.name == "training":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(False), "training"))
    assert not draws(original)
    result = onnxprune.prune(original, Budget("ratio", 0.5), round_to=1, benchmark=False)
    assert sorted(g.units for g in result.plan.groups if g.removed) == [16, 24, 32]


def test_an_original_that_does_not_equal_itself_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "draws", lambda proto: False)  # as with an operator that takes no seed
    original = model("normal, like")
    next(n for n in original.graph.node if n.op_type == "RandomNormalLike").name = "noise"
    with pytest.raises(VerificationError) as caught:
        onnxprune.prune(original, Budget("ratio", 0.5), round_to=1, benchmark=False)
    said = str(caught.value)
    assert "node 'noise' (RandomNormalLike)" in said and "original itself" in said and "report" not in said


LIKE = {
    "RandomNormalLike<mean=2.0,scale=3.0>(x)": (2.0, 3.0),
    "RandomUniformLike<low=-1.0,high=3.0>(x)": (1.0, 4 / 12**0.5),
    "Bernoulli(x)": (0.25, 0.1875**0.5),
    "RandomNormalLike<dtype=11>(x)": (0.0, 1.0),
}


@pytest.mark.parametrize("node", LIKE)
def test_numbers_of_a_table_are_distributed_as_the_nodes_draw_them(node: str) -> None:
    kind = "double" if "dtype" in node else "float"
    text = f"g (float[N,500] x) => ({kind}[N,500] y) {{ y = {node} }}"
    proto = drawn(net(text, opset=17))
    assert not draws(proto)
    session = sessions.Session(Model(proto, None))
    feeds = {"x": np.full((100, 500), 0.25, np.float32)}
    first, second = session.run(feeds)[0], session.run(feeds)[0]
    assert first.tobytes() == second.tobytes()
    mean, deviation = LIKE[node]
    assert abs(first.mean() - mean) < 0.05 * deviation and abs(first.std() - deviation) < 0.05 * deviation
    assert first.shape == (100, 500) and first.dtype == (np.float64 if "dtype" in node else np.float32)
    assert len(np.unique(first)) > 40_000 or "Bernoulli" in node


def test_a_model_that_draws_is_loaded_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    session = sessions.Session(Model(model("normal, like"), None))
    monkeypatch.setattr(session, "_make", None, raising=False)
    feeds = {"x": np.ones((3, 8), np.float32)}
    assert session.draws and session.run(feeds)[0].tobytes() == session.run(feeds)[0].tobytes()
