"""The plan: what it says, how it is written, that it is checked, and that it is enough to do the work again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget, Plan
from onnxprune.cut.plan import PlanGroup
from tests import oracle
from tests.oracle import net, prune
from tests.test_traps import attention, shapes

RESIDUAL = """g (float[N,3,5,5] x) => (float[N,2,5,5] y)
    <float[8,3,3,3] stem, float[8] bias, float[6,8,3,3] a, float[8,6,3,3] b, float[2,8,1,1] head> {
    s = Conv<pads=[1,1,1,1]>(x, stem, bias)
    c = Conv<pads=[1,1,1,1]>(s, a)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1]>(r, b)
    t = Add(s, d)
    y = Conv(t, head)
}"""


def members(group: PlanGroup) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(m.tensor, m.axis): m.removed for m in group.members}


def read(document: dict[str, Any]) -> Plan:
    return Plan.from_json(json.dumps(document))


def test_document() -> None:
    model = net(RESIDUAL)
    plan = prune(model, 0.5).plan
    assert plan.version == 2 and plan.onnxprune == onnxprune.__version__
    assert len(plan.model_sha256) == 64 and plan.nodes_removed == ()
    assert plan.settings["target"] == {"ratio": 0.5}
    by_size = {g.units: g for g in plan.groups}
    assert sorted(by_size) == [6, 8]
    residual = by_size[8]
    assert residual.removed == 4 and residual.exact is True and residual.kind == "channels"
    gone = members(residual)
    assert set(gone) == {("stem", 0), ("bias", 0), ("a", 1), ("b", 0), ("head", 1), ("s", 1), ("d", 1), ("t", 1)}
    assert len(set(gone.values())) == 1, "one position everywhere"
    inner = members(by_size[6])
    assert set(inner) == {("a", 0), ("b", 1), ("c", 1), ("r", 1)} and len(inner["a", 0]) == 3
    sizes = {t.name: list(t.dims) for t in model.graph.initializer}
    params = sum(int(np.prod(s)) for s in sizes.values())
    assert plan.params == (params, 4 * 27 + 4 + 3 * 36 + 4 * 27 + 2 * 4)
    macs = lambda s, i: 25 * (s * 27 + i * s * 9 + s * i * 9 + 2 * s)  # noqa: E731
    before, after = plan.macs
    assert before % macs(8, 6) == 0 and after == before // macs(8, 6) * macs(4, 3)


def test_plan_names_what_the_pruned_file_lacks() -> None:
    """Cut the original's initializers by the members, with numpy: that is the pruned file."""
    model = net(RESIDUAL)
    result = prune(model, 0.6, seed=3)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in result.model.graph.initializer:
        array = arrays[tensor.name]
        for group in result.plan.groups:
            for m in group.members:
                if m.tensor == tensor.name:
                    arrays[tensor.name] = array = np.delete(array, m.removed, m.axis)
        assert np.array_equal(array, numpy_helper.to_array(tensor)), tensor.name


def test_shared_constants_are_listed_per_use() -> None:
    model = net("""g (float[N,3,5,5] x) => (float[N,2,5,5] y) <float[8,3,1,1] a, float[8,8,1,1] w, float[2,8,1,1] z> {
        c0 = Conv(x, a)
        c1 = Conv(c0, w)
        c2 = Conv(c1, w)
        y = Conv(c2, z)
    }""")
    groups = prune(model, 0.5).plan.groups
    uses = sorted((m.node, m.axis) for g in groups for m in g.members if m.tensor == "w")
    assert uses == [("c1:1", 0), ("c1:1", 1), ("c2:1", 0), ("c2:1", 1)]


def test_heads_and_offsets_are_told_apart() -> None:
    model = net(attention(4, 8, 6), constants=shapes(4, 8, 6))
    plan = prune(model, 0.5).plan
    assert sorted(g.kind for g in plan.groups) == ["blocks", "blocks", "rows"]
    rows = next(g for g in plan.groups if g.kind == "rows")
    assert rows.units == 4 and rows.removed == 2
    flat = [len(m.removed) for g in plan.groups for m in g.members if (m.tensor, m.axis) == ("wq", 1)]
    assert sum(flat) == 32 - 2 * 4, "two heads of eight, and four of eight in the other two"


def test_text_has_one_line_per_member_and_reads_back() -> None:
    plan = prune(net(RESIDUAL), 0.5).plan
    text = plan.to_json()
    assert json.loads(text) == plan.to_dict()
    again = Plan.from_json(text)
    assert again == plan and again.to_json() == text
    lines = [line for line in text.splitlines() if '"tensor"' in line]
    assert len(lines) == sum(len(g.members) for g in plan.groups)
    other = prune(net(RESIDUAL), 0.6, seed=1).plan.to_json()
    assert other != text


def test_odd_names_survive() -> None:
    model = net(RESIDUAL)
    names = {"stem": 'a "quoted" name', "s": "ünïcode/…", "a": "back\\slash\nline", "d": "x//y", "c": "n:1"}
    for n in model.graph.node:
        for where in (n.input, n.output):
            for k, name in enumerate(where):
                where[k] = names.get(name, name)
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    result = prune(model, 0.5)
    text = result.plan.to_json()
    tensors = {m["tensor"] for g in json.loads(text)["groups"] for m in g["members"]}
    assert {'a "quoted" name', "ünïcode/…", "back\\slash\nline"} <= tensors
    again = onnxprune.prune(model, apply=Plan.from_json(text), benchmark=False)
    assert again.model == result.model


@pytest.mark.parametrize("options", [{}, {"include_inexact": True}, {"exclude": ("w",)}, {"include": ("e", "w")}])
def test_replay_from_a_file_is_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    model = net("""g (float[N,S,6] x) => (float[N,S,3] y) <float[6,12] e, float[12] s, float[12,16] w, float[16,9] v, float[9,3] h> {
        x0 = MatMul(x, e)
        n = LayerNormalization(x0, s)
        f = MatMul(n, w)
        r = Relu(f)
        g = MatMul(r, v)
        y = MatMul(g, h)
    }""")
    onnx.save(model, tmp_path / "m.onnx")
    first = onnxprune.prune(
        tmp_path / "m.onnx",
        Budget("ratio", 0.5),
        output=tmp_path / "a.onnx",
        plan=tmp_path / "p.json",
        benchmark=False,
        **options,
    )
    second = onnxprune.prune(
        tmp_path / "m.onnx", apply=tmp_path / "p.json", output=tmp_path / "b.onnx", benchmark=False
    )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert first.plan == second.plan
    assert onnxprune.verify(tmp_path / "m.onnx", tmp_path / "b.onnx", tmp_path / "p.json").error <= oracle.TOLERANCE


def test_a_plan_that_takes_less_is_as_good() -> None:
    """By hand: of the classes that a plan removes, one group's can be kept, if its members go as well."""
    model = net(RESIDUAL)
    plan = prune(model, 0.5).plan
    document = json.loads(plan.to_json())
    document["groups"] = [g for g in document["groups"] if g["units"] == 6]
    result = onnxprune.prune(model, apply=read(document), benchmark=False)
    assert oracle.dims(result.model, "a") == [3, 8, 3, 3]
    oracle.compare(model, result)


def test_further_fields_are_left_alone() -> None:
    model = net(RESIDUAL)
    document = json.loads(prune(model, 0.5).plan.to_json())
    document["note"] = "checked by a person"
    result = onnxprune.prune(model, apply=Plan.from_json(json.dumps(document)), benchmark=False)
    assert result.plan.notes == {"note": "checked by a person"}
    assert result.plan.to_dict() == document


def test_a_plan_for_another_file_names_both() -> None:
    plan = prune(net(RESIDUAL), 0.5).plan
    other = net(RESIDUAL, seed=1)
    with pytest.raises(BadInputError, match=r"another file \(sha256 [0-9a-f]{12}…, this one is [0-9a-f]{12}…\)"):
        onnxprune.prune(other, apply=plan, benchmark=False)


def test_a_plan_cannot_remove_what_is_pinned() -> None:
    """Classes of the graph's output, or all of a group."""
    model = net(RESIDUAL)
    document = json.loads(prune(model, 0.5).plan.to_json())
    classes = [c for g in document["groups"] for c in g["classes"]]
    for c in range(40):
        if c in classes:
            continue
        broken = json.loads(json.dumps(document))
        broken["groups"][0]["classes"].append(c)
        with pytest.raises(BadInputError):
            onnxprune.prune(model, apply=read(broken), benchmark=False)


def test_a_plan_cannot_leave_uneven_heads() -> None:
    """Members and classes agree with each other, but the rows would differ in length."""
    model = net(attention(4, 8, 6), constants=shapes(4, 8, 6))
    document = json.loads(prune(model, 0.5).plan.to_json())
    blocks = next(g for g in document["groups"] if g["kind"] == "blocks")
    blocks["classes"] = blocks["classes"][:-1]
    with pytest.raises(BadInputError):
        onnxprune.prune(model, apply=read(document), benchmark=False)


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 1}',
        "[]",
        '{"version": "1", "model_sha256": "", "groups": []}',
        "{",
        '{"version": 7, "model_sha256": "", "groups": []}',
    ],
)
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(BadInputError) as error:
        Plan.from_json(text, "p.json")
    assert "p.json" in str(error.value)
