"""Block by block (`training/blocks.py`): a stretch of the network learns from what lies at its start what the teacher has at its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper

from onnxprune.model.branches import showing
from onnxprune.model.load import load
from onnxprune.runtime import Session
from onnxprune.training import blocks, losses
from onnxprune.training.blocks import ROOM, Pace, fitting, reconstruct
from onnxprune.training.loop import relative
from onnxprune.training.network import Network
from onnxprune.training.objective import Feature, Objective, Target
from tests.oracle import net

TEXT = """g (float[N,6] x) => (float[N,3] y) <float[6,8] w, float[8,8] v, float[8,8] u, float[8,3] h> {
    a = MatMul(x, w) r = Relu(a) c = MatMul(r, v) first = Add(a, c) s = Relu(first) d = MatMul(s, u) e = Add(d, r)
    second = Add(first, e) y = MatMul(second, h) }"""
ENDS = ("first", "second")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def disturbed(model: ModelProto, amount: float) -> ModelProto:
    """Another model of the same graph."""
    rng = np.random.default_rng(1)
    other = ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        value = numpy_helper.to_array(tensor)
        noise = (amount * rng.standard_normal(value.shape)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value + noise, tensor.name))
    return other


def setting(amount: float = 0.2, count: int = 6) -> tuple[Network, Objective, list[Target], list[Target]]:
    """A network that is to become its teacher again, batches of random inputs to train on, and two to judge by."""
    teacher = load(net(TEXT))
    network = Network(load(disturbed(teacher.proto, amount)))
    session = Session(teacher.beside(showing(teacher.proto, [*ENDS, "y"])))
    rng = np.random.default_rng(2)
    batches = []
    for _ in range(count + 2):
        feeds = {"x": rng.standard_normal((16, 6)).astype(np.float32)}
        said = dict(zip((*ENDS, "y"), session.run(feeds, [*ENDS, "y"]), strict=True))
        ones = torch.ones(16)
        batches.append(
            Target(feeds, {k: torch.from_numpy(np.array(v)) for k, v in said.items()}, None, ones, ones, weight=16.0)
        )
    features = tuple(Feature(k, (), float(batches[0].teacher[k].var())) for k in ENDS)
    distances = tuple(losses.distances({"y": [b.teacher["y"].numpy() for b in batches]}))
    return network, Objective(distances, None, features, 1.0, 0.0, 1.0), batches[2:], batches[:2]


def apart(network: Network, targets: list[Target], key: str) -> float:
    with torch.no_grad():
        pairs = [(network(t.feeds, [key])[key], t.teacher[key]) for t in targets]
    return float(torch.cat([(a - b).square() for a, b in pairs]).mean())


def silent(text: str) -> None:
    """No progress."""


def test_every_block_comes_closer_to_the_teacher() -> None:
    network, objective, training, held = setting()
    before = {k: apart(network, held, k) for k in (*ENDS, "y")}
    assert reconstruct(network, objective, training, held, Pace(steps=300), silent) == 3
    after = {k: apart(network, held, k) for k in (*ENDS, "y")}
    assert all(after[k] < 0.1 * before[k] for k in before), (before, after)


def test_a_block_begins_where_the_one_before_ends() -> None:
    network, objective, _, _ = setting()
    found = blocks._blocks(network, objective)
    assert [set(b.own) for b in found] == [{"w", "v"}, {"u"}, {"h"}]  # w is read in the second again, as r is made anew
    made = [{key for step in b.plan[0] for key in step.outputs} for b in found]
    assert made == [{"a", "r", "c", "first"}, {"a", "r", "s", "d", "e", "second"}, {"y"}]


def test_a_block_learns_its_own_weights_and_no_others() -> None:
    network, objective, training, held = setting()
    first = Objective((), None, objective.features[:1], 1.0, 0.0, 1.0)
    before = network.values()
    assert reconstruct(network, first, training, held, Pace(steps=20), silent) == 1
    after = network.values()
    moved = {k for k in before if not np.array_equal(before[k], after[k])}
    assert moved == {"w", "v"}  # u and h lie behind


def test_an_end_without_weights_of_its_own_is_no_block() -> None:
    network, objective, training, held = setting()
    spread = objective.features[0].spread
    more = tuple(Feature(k, (), spread) for k in ("first", "s", "second"))
    teacher = load(net(TEXT))
    session = Session(teacher.beside(showing(teacher.proto, ["s"])))
    for target in (*training, *held):
        target.teacher["s"] = torch.from_numpy(np.array(session.run(target.feeds, ["s"])[0]))
    objective = Objective(objective.distances, None, more, 1.0, 0.0, 1.0)
    assert reconstruct(network, objective, training, held, Pace(steps=100), silent) == 3


def test_what_is_no_better_on_what_is_held_out_stays_as_it_was() -> None:
    network, objective, training, held = setting()
    before = network.values()
    wild = Pace(steps=5, rate=1e3)
    assert reconstruct(network, objective, training, held, wild, silent) == 0
    assert all(np.array_equal(before[k], v) for k, v in network.values().items())


def test_the_same_seed_gives_the_same_weights() -> None:
    found = []
    for _ in range(2):
        network, objective, training, held = setting()
        reconstruct(network, objective, training, held, Pace(steps=10, seed=3), silent)
        found.append(network.values())
    assert all(np.array_equal(found[0][k], found[1][k]) for k in found[0])


def test_zeros_of_sparse_weights_stay() -> None:
    network, objective, training, held = setting()
    with torch.no_grad():
        network.parameters["v"][:, ::2] = 0
    reconstruct(network, objective, training, held, Pace(steps=10), silent)
    assert bool((network.parameters["v"][:, ::2] == 0).all()) and bool((network.parameters["v"][:, 1::2] != 0).all())


def test_time_ends_it() -> None:
    network, objective, training, held = setting()
    before = network.values()
    assert reconstruct(network, objective, training, held, Pace(steps=10, minutes=0.0), silent) == 0
    assert all(np.array_equal(before[k], v) for k, v in network.values().items())


def test_a_part_gives_what_the_whole_gives() -> None:
    network = setting()[0]
    feeds = {"x": np.random.default_rng(4).standard_normal((3, 6)).astype(np.float32)}
    with torch.no_grad():
        whole = network(feeds, [*ENDS, "r"])
        part = network.part({"first"}, ["second"])
        assert {s.op for s in part[0]} == {"MatMul", "Relu", "Add"} and len(part[0]) == 6  # r is made anew, from x
        found = network(feeds | {"first": whole["first"]}, ["second"], part)
        assert list(found) == ["second"] and torch.equal(found["second"], whole["second"])
        zero: dict[str, Any] = feeds | {"first": torch.zeros_like(whole["first"])}
        assert not torch.allclose(network(zero, ["second"], part)["second"], whole["second"])


def test_steps_are_as_large_as_weights() -> None:
    small, large, none = torch.full((4,), 1e-2), torch.full((4,), -10.0), torch.zeros(4)
    scales = [g["scale"] for g in relative([small, large, none], 0.1)]
    assert scales == pytest.approx([1e-3, 1.0, 1e-4])


def test_no_more_samples_than_there_is_room_for() -> None:
    _, objective, training, _ = setting()
    assert fitting(objective.features, training) == len(training)
    rows = ROOM // (2 * 4 * 16)
    large = Target({}, {k: torch.zeros(()).expand(rows, 8) for k in ENDS}, None, torch.ones(1), torch.ones(1), 1.0)
    assert fitting(objective.features, [large, large]) == 1
