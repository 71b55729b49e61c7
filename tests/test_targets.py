"""Targets beyond a share of MACs: bytes, a limit on the loss, and the metrics that measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget, TargetNotReachableError
from onnxprune.analyse.feeds import samples_of
from onnxprune.analyse.sources import Aside
from onnxprune.calibrate.damage import angle, disagreement
from onnxprune.choose.risk import FEWEST
from onnxprune.cli import main
from onnxprune.model.load import load
from onnxprune.report.markdown import markdown
from onnxprune.runtime import Session, graph_inputs

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "models" / "digits.onnx"
CALIB = ROOT / "models" / "digits_calib.npz"


def share(result: onnxprune.PruneResult) -> float:
    before, after = result.report.cost.macs
    return float(after / before)


def test_size_counts_the_bytes_of_the_weights() -> None:
    result = onnxprune.prune(DIGITS, Budget("size", 0.6), recover="none", benchmark=False)
    stored = [sum(len(t.raw_data) for t in m.graph.initializer) for m in (onnx.load(DIGITS), result.model)]
    assert 0.45 < stored[1] / stored[0] <= 0.6


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer candidates."""
    monkeypatch.setattr("onnxprune.choose.max_drop.SHARES", (0.8, 0.5, 0.2))


def test_a_larger_drop_allows_a_smaller_model(few: None) -> None:
    shares = []
    for drop in (0.02, 0.4):
        budget = Budget("max_drop", drop)
        shares.append(share(onnxprune.prune(DIGITS, budget, data=CALIB, metric="kl", round_to=1, benchmark=False)))
    assert shares[1] < shares[0] < 0.9


def test_the_users_own_score_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None) -> None:
    """The labels are the original's own answers, so nothing but agreement can be lost."""
    import onnxruntime as ort

    inputs = dict(np.load(CALIB))
    name = onnx.load(DIGITS).graph.input[0].name
    logits = ort.InferenceSession(DIGITS).run(None, {name: inputs[name]})[0]
    np.savez(tmp_path / "labelled.npz", **{name: inputs[name]}, labels=logits.argmax(axis=1))
    monkeypatch.chdir(ROOT)
    budget = Budget("max_drop", 0.05)
    result = onnxprune.prune(
        DIGITS, budget, data=tmp_path / "labelled.npz", metric="tests.readme_metric:accuracy", benchmark=False
    )
    assert share(result) < 0.9 and not result.report.drop.is_approximate
    with pytest.raises(BadInputError, match=r"tests\.readme_metric:accuracy failed: KeyError"):
        onnxprune.prune(DIGITS, budget, data=CALIB, metric="tests.readme_metric:accuracy", benchmark=False)


@pytest.mark.parametrize("metric", ["f1", "no_such_module:score", "tests.readme_metric:nothing", "os:sep"])
def test_metrics_that_are_none(metric: str) -> None:
    with pytest.raises(BadInputError, match="--metric"):
        onnxprune.prune(DIGITS, Budget("max_drop", 0.1), data=CALIB, metric=metric)


def set_aside(x: Any) -> list[int]:
    """Of the calibration images, those that a limit on the divergence sets aside."""
    model = load(DIGITS)
    found = samples_of([{"x": x}], graph_inputs(model.proto), 512, model=Session(model), aside=Aside(FEWEST, "")).unseen
    assert found is not None
    place = {row.tobytes(): k for k, row in enumerate(x)}
    return sorted(place[row.tobytes()] for f in found.feeds for row in f["x"])


def test_the_reported_drop_is_on_samples_that_nothing_looked_at(tmp_path: Path, few: None) -> None:
    """Other values in them change what is reported, and not one byte of the model."""
    x = np.load(CALIB)["x"]
    first = onnxprune.prune(DIGITS, Budget("max_drop", 0.2), data=CALIB, benchmark=False)
    drop = first.report.drop
    assert drop.metric == "kl" and drop.samples == 60 and 0 < drop.measured <= 0.2 and drop.is_approximate
    assert first.report.calibration.samples == 68
    assert "60 samples that no step has seen" in markdown(first.report)
    x[set_aside(x)] *= 0.95
    np.savez(tmp_path / "other.npz", x=x)
    second = onnxprune.prune(DIGITS, Budget("max_drop", 0.2), data=tmp_path / "other.npz", benchmark=False, metric="kl")
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert second.report.drop.measured != drop.measured


def test_a_drop_that_unseen_samples_do_not_confirm(tmp_path: Path, few: None) -> None:
    """In those that are set aside a digit is hidden under noise: what was found on the others does not hold there."""
    x = np.load(CALIB)["x"]
    rng = np.random.default_rng(0)
    at = set_aside(x)
    x[at] = rng.uniform(-20, 20, x[at].shape).astype(np.float32)
    np.savez(tmp_path / "noisy.npz", x=x)
    command = [
        "prune",
        str(DIGITS),
        "-o",
        str(tmp_path / "s.onnx"),
        "--max-drop",
        "0.01",
        "--data",
        str(tmp_path / "noisy.npz"),
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 3 and "cannot be promised" in result.stderr and "60 samples set aside" in result.stderr
    assert not (tmp_path / "s.onnx").exists()


def test_a_drop_wants_samples_to_set_aside(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=np.load(CALIB)["x"][:4])
    with pytest.raises(TargetNotReachableError, match=r"needs at least 27 samples, 20 of them .* there are 4"):
        onnxprune.prune(DIGITS, Budget("max_drop", 0.1), data=tmp_path / "few.npz", benchmark=False)


def test_replaying_a_drop_sets_the_same_samples_aside(tmp_path: Path, few: None) -> None:
    files = {k: tmp_path / k for k in ("s.onnx", "p.json", "again.onnx")}
    onnxprune.prune(
        DIGITS, Budget("max_drop", 0.1), data=CALIB, output=files["s.onnx"], plan=files["p.json"], benchmark=False
    )
    onnxprune.prune(DIGITS, apply=files["p.json"], data=CALIB, output=files["again.onnx"], benchmark=False)
    assert files["s.onnx"].read_bytes() == files["again.onnx"].read_bytes()
    onnxprune.verify(DIGITS, files["s.onnx"], files["p.json"], data=CALIB)


@pytest.mark.slow
def test_layers_may_go_for_a_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.choose.max_drop.LAYERS", (0.8, 0.5))
    monkeypatch.setattr("onnxprune.choose.layers.TRIALS", 2)
    monkeypatch.setattr("onnxprune.choose.layers.LOOKED", 2)
    result = onnxprune.prune(DIGITS, Budget("max_drop", 0.3), data=CALIB, depth="auto", benchmark=False)
    assert result.report.drop.measured <= 0.3 and result.report.depth.mode == "auto"
    assert share(result) <= 0.5


def test_a_drop_that_cannot_be_kept_and_one_that_cannot_be_measured(few: None) -> None:
    with pytest.raises(TargetNotReachableError, match=r"cannot be promised: at 0\.8 of the MACs"):
        onnxprune.prune(DIGITS, Budget("max_drop", 1e-6), data=CALIB, metric="kl", benchmark=False)
    with pytest.raises(BadInputError, match="needs calibration"):
        onnxprune.prune(DIGITS, Budget("max_drop", 0.1), data=CALIB, recover="none", importance="l2")
    with pytest.raises(BadInputError, match="0 or more"):
        Budget("max_drop", -0.1)


def test_disagreement_and_angle() -> None:
    wanted = [[np.array([[1.0, 2, 3], [3, 2, 1]], np.float32)], [np.array([[0.0, 1, 0]], np.float32)]]
    found = [[np.array([[3.0, 2, 1], [9, 2, 1]], np.float32)], [np.array([[0.0, 1, 0]], np.float32)]]
    assert disagreement(wanted, wanted) == 0 and disagreement(wanted, found) == pytest.approx(1 / 3)
    assert angle(wanted, wanted) == pytest.approx(0, abs=1e-7)
    assert angle(wanted, [[2 * a for a in s] for s in wanted]) == pytest.approx(0, abs=1e-7)
    assert angle([[np.array([[1.0, 0]])]], [[np.array([[0.0, 1]])]]) == pytest.approx(1)
    with pytest.raises(BadInputError, match="top1 needs"):
        disagreement([[np.zeros(3, np.float32)]], [[np.zeros(3, np.float32)]])


@pytest.mark.parametrize("count", [pytest.param(n, marks=pytest.mark.slow) for n in (30, 64)] + [27])
def test_a_few_samples_are_enough_to_set_some_aside(tmp_path: Path, count: int, few: None) -> None:
    np.savez(tmp_path / "few.npz", x=np.load(CALIB)["x"][:count])
    result = onnxprune.prune(DIGITS, Budget("max_drop", 5.0), data=tmp_path / "few.npz", benchmark=False)
    assert result.report.drop.samples == max(20, count // 2)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_score_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    (tmp_path / f"odd_{value}.py").write_text(f"def score(outputs, data):\n    return float('{value}')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="it must be a finite number"):
        onnxprune.prune(DIGITS, Budget("max_drop", 0.1), data=CALIB, metric=f"odd_{value}:score", benchmark=False)


def test_a_limit_where_nothing_can_go_says_so(tmp_path: Path) -> None:
    from tests.oracle import net

    model = net("g (float[N,8] x) => (float[N,8] y) <float[8,8] w> { y = MatMul(x, w) }")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32))
    with pytest.raises(onnxprune.NothingPrunableError):
        onnxprune.prune(model, Budget("max_drop", 0.1), data=tmp_path / "x.npz", benchmark=False)
