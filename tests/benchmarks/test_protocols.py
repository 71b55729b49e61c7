"""The protocols of published tables, on stand-ins for what they need: ImageNet and a language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.benchmarks import imagenet, perplexity
from tests.oracle import net

COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220))
VISION = """g (float[N,3,8,8] x) => (float[N,3] y) <float[12,3,1,1] w, float[3,12] h> {
    c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB = 1>(f, h) }"""
LANGUAGE = """g (int64[N,T] input_ids, int64[N,T] attention_mask) => (float[N,T,11] logits) <float[11,8] table, float[8,24] w, float[24,11] h> {
    e = Gather(table, input_ids) a = MatMul(e, w) r = Relu(a) logits = MatMul(r, h) }"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of six pictures each, oblong ones: red, green and blue, with a rim of the next colour that is cut off."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("n02", "n01", "n03")):
        (tmp_path / name).mkdir()
        for i in range(6):
            pixels = np.full((12, 30, 3), COLOURS[(k + 1) % 3], np.uint8)
            pixels[:, 9:21] = np.clip(np.array(COLOURS[k]) + rng.integers(-20, 21, (12, 12, 3)), 0, 255)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def classifier(path: Path) -> Path:
    """Of the strongest colour, with classes in the order of the folders' names: n01 is green, n02 red."""
    model = net(VISION)
    w, h = np.zeros((12, 3, 1, 1), np.float32), np.zeros((3, 12), np.float32)
    for unit in range(12):
        w[unit, unit % 3] = 1 + unit / 12
        h[(1, 0, 2)[unit % 3], unit] = 1
    for tensor, value in zip(model.graph.initializer, (w, h), strict=True):
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(model, path)
    return path


def test_classes_are_folders_by_name_and_the_middle_is_seen(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier(tmp_path_factory.mktemp("m") / "m.onnx")
    how = ["--val", str(pictures), "--train", str(pictures), "--crop", "0.8", "--samples", "12", "--batch", "4"]
    imagenet.main([str(model), *how, "--macs", "0.5"])
    rows = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| ") and "top-1" not in x]
    assert rows[0] == "| 1 | 1 | 1.0000 |"
    macs, _, score = (float(x) for x in rows[1].strip("| ").split(" | "))
    assert macs <= 0.5 and score == 1.0  # four units of each colour, one is enough


def test_what_goes_in_is_scaled_cut_and_normalized(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 8:24] = (255, 51, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = imagenet.Protocol(size=8, crop=0.5, mean=(0.5, 0.2, 0.1), std=(0.5, 0.1, 0.1)).prepared(tmp_path / "a.png")
    assert x.shape == (3, 8, 8) and np.allclose(x, np.array([1.0, 0.0, -1.0])[:, None, None], atol=1e-6)


def test_a_model_without_images_and_a_folder_without_any_are_refused(tmp_path: Path) -> None:
    onnx.save(net(LANGUAGE), tmp_path / "l.onnx")
    (tmp_path / "val" / "a").mkdir(parents=True)
    with pytest.raises(SystemExit, match="one input"):
        imagenet.main([str(tmp_path / "l.onnx"), "--val", str(tmp_path), "--train", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        imagenet.main([str(classifier(tmp_path / "m.onnx")), "--val", str(tmp_path / "val"), "--train", str(tmp_path)])
    assert error.value.code == 2
    with pytest.raises(SystemExit, match="holds no images"):
        imagenet.drawn(tmp_path / "val", 3, 0)


def test_perplexity_is_that_of_every_id_but_the_first_of_its_window() -> None:
    model = net(LANGUAGE)
    windows = np.random.default_rng(1).integers(0, 11, (3, 5))
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    logits = np.maximum(weights["table"][windows] @ weights["w"], 0) @ weights["h"]
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    each = [-np.log(chances[n, t, windows[n, t + 1]]) for n in range(3) for t in range(4)]
    found = perplexity.perplexity(model, perplexity.inputs_of(model), windows, 1)
    assert found == pytest.approx(float(np.exp(np.mean(each))), rel=1e-5)


def test_a_language_model_is_pruned_by_windows_of_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(net(LANGUAGE), tmp_path / "m.onnx")
    np.save(tmp_path / "a.npy", np.random.default_rng(2).integers(0, 11, 103))
    how = [
        "--text",
        str(tmp_path / "a.npy"),
        "--calibration",
        str(tmp_path / "a.npy"),
        "--samples",
        "16",
        "--macs",
        "0.7",
    ]
    perplexity.main([str(tmp_path / "m.onnx"), *how, "--sequence", "10"])
    told = capsys.readouterr().out
    assert "10 windows of 10 ids" in told
    first, second = ([float(v) for v in x.strip("| ").split(" | ")] for x in told.splitlines()[-2:])
    assert first[:2] == [1, 1] and second[0] <= 0.7 and second[2] > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sequence", "400"], "fewer than the 400"),
        (["--text", "nothing.npy"], "does not exist"),
        (["--text", __file__], "give --tokenizer"),
    ],
)
def test_what_is_missing_is_said(options: list[str], said: str, tmp_path: Path) -> None:
    onnx.save(net(LANGUAGE), tmp_path / "m.onnx")
    np.save(tmp_path / "a.npy", np.arange(100) % 11)
    how = ["--text", str(tmp_path / "a.npy"), "--calibration", str(tmp_path / "a.npy"), "--sequence", "10", *options]
    with pytest.raises(SystemExit, match=said):
        perplexity.main([str(tmp_path / "m.onnx"), *how])
