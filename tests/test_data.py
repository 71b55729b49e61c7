"""`onnxprune data` and `onnxprune record`: files as users have them, to what a model takes.

Seen red: a preset that was taken though nothing showed it, a corrupt picture that stopped all, pixels of a turned photograph, BGR for RGB.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.analyse.feeds import load_data, sources_of
from onnxprune.cli import main
from onnxprune.inputs import options
from onnxprune.inputs.images import PRESETS, Preset
from onnxprune.model.load import load
from onnxprune.runtime import graph_inputs

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "models" / "digits.onnx"


def model(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, np.ndarray],
    out: str = "y",
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return path


def taking(path: Path, shape: list[Any], kind: int = TensorProto.FLOAT, name: str = "x") -> Path:
    """A model with one input of this shape that adds all of it up."""
    nodes = [
        helper.make_node("Cast", [name], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], keepdims=0),
    ]
    return model(path, nodes, {name: (kind, shape)}, {})


def photo(path: Path, seed: int, size: tuple[int, int] = (80, 60), **how: Any) -> None:
    """Smooth colours with an edge, like a photograph's statistics."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, **how)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for k in range(10):
        photo(folder / f"{k}.png", k)
    photo(folder / "more" / "a.jpg", 20)
    return folder


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_their_formulas(tmp_path: Path, photos: Path, layout: str, preset: str) -> None:
    shape = ["n", 3, 32, 48] if layout == "NCHW" else ["n", 32, 48, 3]
    net = taking(tmp_path / "m.onnx", shape)
    report = onnxprune.data(photos / "0.png", model=net, output=tmp_path / "c.npz", preset=preset, resize="squash")
    x = np.load(tmp_path / "c.npz")["x"]
    x = x.transpose(0, 2, 3, 1) if layout == "NCHW" else x
    with Image.open(photos / "0.png") as opened:
        pixels = np.asarray(opened.convert("RGB").resize((48, 32), Image.Resampling.BILINEAR)).astype(np.float64)
    imagenet = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    clip = (pixels / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    wanted = {
        "imagenet": imagenet,
        "-1..1": pixels / 127.5 - 1,
        "0..1": pixels / 255,
        "0..255": pixels,
        "clip": clip,
        "caffe": pixels[..., ::-1] - [103.939, 116.779, 123.68],
        "yolo": pixels / 255,
    }
    np.testing.assert_allclose(x[0], wanted[preset], atol=1e-4)
    assert report.samples == 1 and x.dtype == np.float32


def test_presets_go_back_to_pixels() -> None:
    assert tuple(sorted(PRESETS)) == tuple(sorted(options.PRESETS))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    for preset in PRESETS.values():
        np.testing.assert_array_equal(preset.back(preset(pixels)), pixels)


def test_kinds_of_pictures(tmp_path: Path) -> None:
    """Grey, palette, alpha, 16 bits, CMYK, and one that a camera turned: each as it looks."""
    folder = tmp_path / "p"
    folder.mkdir()
    red = Image.new("RGB", (40, 40), (200, 0, 0))
    red.convert("P").save(folder / "palette.png")
    red.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.new("RGBA", (40, 40), (200, 0, 0, 0)).save(folder / "clear.png")
    Image.fromarray(np.full((40, 40), 32768, np.uint16)).save(folder / "deep.png")
    half = Image.new("RGB", (40, 40))
    half.paste((200, 0, 0), (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    half.save(folder / "turned.png", exif=exif)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"x")
    net = taking(tmp_path / "m.onnx", ["n", 3, 8, 8])
    report = onnxprune.data(folder, model=net, output=tmp_path / "c.npz", preset="0..255")
    x = np.load(tmp_path / "c.npz")["x"]
    by_name = dict(zip(("clear", "cmyk", "deep", "palette", "turned"), x, strict=True))
    assert np.abs(by_name["clear"] - 255).max() < 1
    assert np.abs(by_name["deep"] - 127.5).max() < 2
    assert np.abs(by_name["palette"][0] - 200).max() < 5 and by_name["palette"][1].max() < 5
    assert by_name["cmyk"][0].mean() > 150 and by_name["cmyk"][1].mean() < 60
    assert by_name["turned"][0, -1].mean() > 190 and by_name["turned"][0, 0].mean() < 5
    assert [p.name for p, _ in report.skipped] == ["broken.png"] and "broken.png" in "\n".join(report.lines())


def test_one_channel_and_bytes(tmp_path: Path, photos: Path) -> None:
    grey = taking(tmp_path / "g.onnx", [1, 1, 16, 16])
    onnxprune.data(photos, model=grey, output=tmp_path / "g.npz", preset="0..1")
    assert np.load(tmp_path / "g.npz")["x"].shape == (11, 1, 16, 16)
    raw = taking(tmp_path / "u.onnx", ["n", 16, 16, 3], TensorProto.UINT8)
    report = onnxprune.data(photos, model=raw, output=tmp_path / "u.npz")
    x = np.load(tmp_path / "u.npz")["x"]
    assert x.dtype == np.uint8 and x.max() > 100 and "uint8" in report.notes[0]
    with pytest.raises(BadInputError, match="cannot hold values"):
        onnxprune.data(photos, model=raw, output=tmp_path / "v.npz", preset="imagenet")


def test_letterbox_and_crop(tmp_path: Path) -> None:
    wide = Image.new("RGB", (100, 50), (200, 0, 0))
    wide.save(tmp_path / "w.png")
    net = taking(tmp_path / "m.onnx", ["n", 3, "h", "w"])
    for resize, grey in (("letterbox", True), ("crop", False), ("squash", False)):
        onnxprune.data(
            tmp_path / "w.png", model=net, output=tmp_path / "c.npz", preset="0..255", resize=resize, size=40
        )
        x = np.load(tmp_path / "c.npz")["x"]
        assert x.shape == (1, 3, 40, 40) and (abs(x[0, 1, 0].mean() - 114) < 1) == grey
    onnxprune.data(tmp_path / "w.png", model=net, output=tmp_path / "c.npz", preset="0..1", size="30,60")
    assert np.load(tmp_path / "c.npz")["x"].shape == (1, 3, 30, 60)


def test_a_sheet_shows_what_the_model_sees(tmp_path: Path, photos: Path) -> None:
    net = taking(tmp_path / "m.onnx", ["n", 3, 64, 64])
    onnxprune.data(photos, model=net, output=tmp_path / "c.npz", preset="imagenet", sheet=tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as shown, Image.open(photos / "0.png") as own:
        pixels = np.asarray(shown.convert("RGB"))[8:72, 8:72].astype(float)
        wanted = np.asarray(own.convert("RGB").resize((64, 48))).astype(float)
        assert np.abs(pixels.mean(axis=(0, 1)) - wanted.mean(axis=(0, 1))).max() < 25


# ---------------------------------------------------------------- which preset


def normed(path: Path, preset: Preset, photos: Path) -> Path:
    """A convolution and a batch normalization that keeps what it saw of these pictures with this preset."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    first = model(path, [conv], {"x": (TensorProto.FLOAT, ["n", 3, 32, 32])}, {"w": w}, "c")
    onnxprune.data(photos, model=first, output=path.with_suffix(".npz"), preset=preset.name)
    c = onnxruntime.InferenceSession(str(first)).run(None, {"x": np.load(path.with_suffix(".npz"))["x"]})[0]
    weights = {
        "w": w,
        "s": np.ones(8, np.float32),
        "b": np.zeros(8, np.float32),
        "m": c.mean((0, 2, 3)),
        "v": c.var((0, 2, 3)),
    }
    norm = helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])
    return model(path, [conv, norm], {"x": (TensorProto.FLOAT, ["n", 3, 32, 32])}, weights)


@pytest.mark.parametrize("name", ["imagenet", "-1..1", "0..1", "0..255", "caffe"])
def test_batch_normalizations_remember_the_preset(tmp_path: Path, photos: Path, name: str) -> None:
    net = normed(tmp_path / "m.onnx", PRESETS[name], photos)
    other = tmp_path / "others"
    other.mkdir()
    for k in range(12):
        photo(other / f"{k}.png", 100 + k)
    report = onnxprune.data(other, model=net, output=tmp_path / "c.npz")
    assert report.notes[0].startswith(f"preset: {name}, as mean and variance"), report.notes


def test_statistics_that_fit_nothing_decide_nothing(tmp_path: Path, photos: Path) -> None:
    net = normed(tmp_path / "m.onnx", PRESETS["0..1"], photos)
    proto = onnx.load(net)
    for tensor in proto.graph.initializer:
        if tensor.name in ("m", "v"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 37 + 5, tensor.name))
    onnx.save(proto, net)
    with pytest.raises(BadInputError, match=r"not certain: .*--preset \("):
        onnxprune.data(photos, model=net, output=tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([("Sub", 127.5), ("Div", 127.5)], "0..255"),
        ([("Div", 255.0), ("Sub", 0.45), ("Div", 0.225)], "0..255"),
        ([("Sub", 0.45), ("Div", 0.225)], "0..1"),
        ([("Mul", 1 / 255.0)], "0..255"),
    ],
)
def test_a_normalization_in_the_graph(
    tmp_path: Path, photos: Path, steps: list[tuple[str, float]], wanted: str
) -> None:
    nodes, name = [], "x"
    for k, (op, _) in enumerate(steps):
        nodes.append(helper.make_node(op, [name, f"c{k}"], [f"t{k}"]))
        name = f"t{k}"
    nodes.append(helper.make_node("ReduceMean", [name], ["y"], keepdims=0))
    weights = {f"c{k}": np.array(value, np.float32) for k, (_, value) in enumerate(steps)}
    net = model(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, ["n", 3, 16, 16])}, weights)
    report = onnxprune.data(photos, model=net, output=tmp_path / "c.npz")
    assert report.notes[0].startswith(f"preset: {wanted}, as the graph begins with {steps[0][0]}")


def test_where_nothing_tells_it_is_asked_for(tmp_path: Path, photos: Path) -> None:
    net = taking(tmp_path / "m.onnx", ["n", 3, 16, 16])
    done = CliRunner().invoke(main, ["data", str(photos), "--model", str(net), "-o", str(tmp_path / "c.npz")])
    assert done.exit_code == 2 and "give --preset" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "c.npz").exists()


def test_ultralytics_says_so(tmp_path: Path, photos: Path) -> None:
    net = taking(tmp_path / "m.onnx", ["n", 3, 16, 16])
    proto = onnx.load(net)
    for key, value in (("task", "detect"), ("stride", "32"), ("names", "{0: 'a'}")):
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, net)
    report = onnxprune.data(photos, model=net, output=tmp_path / "c.npz")
    assert "yolo" in report.notes[0] and "letterbox" in report.notes[1]


# ---------------------------------------------------------------- recordings, texts, tables


def test_recordings(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    t = np.arange(44100) / 44100
    soundfile.write(folder / "a.wav", np.stack([0.5 * np.sin(2 * np.pi * 440 * t)] * 2, axis=1), 44100)
    soundfile.write(folder / "b.wav", 0.25 * np.sin(2 * np.pi * 440 * t[:22050]), 44100)
    (folder / "c.wav").write_bytes(b"RIFF")
    net = taking(tmp_path / "m.onnx", ["n", 1, 4000])
    report = onnxprune.data(folder, model=net, output=tmp_path / "c.npz", rate=16000)
    made = np.load(tmp_path / "c.npz")
    assert made["x"].shape == (6, 1, 4000) and made["groups"].tolist() == [0] * 4 + [1] * 2
    peaks = np.abs(np.fft.rfft(made["x"][1, 0])).argmax() * 16000 / 4000
    assert abs(peaks - 440) < 5 and abs(np.abs(made["x"][1]).max() - 0.5) < 0.01
    assert [p.name for p, _ in report.skipped] == ["c.wav"]
    assert sources_of(tmp_path / "c.npz", graph_inputs(load(net).proto)).kind == "group"
    free = taking(tmp_path / "f.onnx", ["n", "t"])
    onnxprune.data(folder, model=free, output=tmp_path / "f.npz", seconds=0.25)
    assert np.load(tmp_path / "f.npz")["x"].shape == (6, 11025)
    soundfile.write(folder / "d.wav", np.zeros(800), 8000)
    with pytest.raises(BadInputError, match="--rate which one"):
        onnxprune.data(folder, model=net, output=tmp_path / "c.npz")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {w: k for k, w in enumerate(["[PAD]", "[UNK]", "a", "small", "net", "is", "fast"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def reading(path: Path, length: Any) -> Path:
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
    ]
    return model(path, nodes, {n: (TensorProto.INT64, ["n", length]) for n in ("input_ids", "attention_mask")}, {})


def test_texts(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "t.txt").write_text("a small net is fast\n\na net\n")
    (tmp_path / "t.jsonl").write_text('{"said": "is a net"}\n{"said": "huge"}\n')
    net = reading(tmp_path / "m.onnx", "length")
    onnxprune.data(tmp_path / "t.txt", model=net, output=tmp_path / "c.npz")  # the tokenizer lies beside the model
    made = np.load(tmp_path / "c.npz")
    assert made["input_ids"].tolist() == [[2, 3, 4, 5, 6], [2, 4, 0, 0, 0]] and made["attention_mask"].tolist()[1] == [
        1,
        1,
        0,
        0,
        0,
    ]
    fixed = reading(tmp_path / "f.onnx", 3)
    onnxprune.data(tmp_path / "t.jsonl", model=fixed, output=tmp_path / "f.npz", tokenizer=tokenizer, field="said")
    assert np.load(tmp_path / "f.npz")["input_ids"].tolist() == [[5, 2, 4], [1, 0, 0]]
    with pytest.raises(BadInputError, match=r"t\.jsonl:1 has no text in 'text'; it has said"):
        onnxprune.data(tmp_path / "t.jsonl", model=fixed, output=tmp_path / "f.npz")
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInputError, match="--tokenizer"):
        onnxprune.data(tmp_path / "t.txt", model=reading(tmp_path / "other" / "m.onnx", "n"), output=tmp_path / "f.npz")
    with pytest.raises(BadInputError, match=r"is no tokenizer\.json"):
        onnxprune.data(tmp_path / "t.txt", model=net, output=tmp_path / "f.npz", tokenizer=tmp_path / "t.txt")


def test_tables(tmp_path: Path) -> None:
    net = taking(tmp_path / "m.onnx", ["n", 3])
    (tmp_path / "t.csv").write_text("name;a;b;c\nx;1;2;3\ny;4;5;6.5\n")
    onnxprune.data(tmp_path / "t.csv", model=net, output=tmp_path / "c.npz")
    assert np.load(tmp_path / "c.npz")["x"].tolist() == [[1, 2, 3], [4, 5, 6.5]]
    (tmp_path / "t.csv").write_text("1,2,3\n4,,6\n")
    with pytest.raises(
        BadInputError,
        match=r"takes 3 numbers a row, and .* has 2 columns of numbers only; line 2 has no value in column 2",
    ):
        onnxprune.data(tmp_path / "t.csv", model=net, output=tmp_path / "c.npz")
    two = {"age": (TensorProto.FLOAT, ["n", 1]), "size": (TensorProto.FLOAT, ["n"])}
    named = model(
        tmp_path / "n.onnx",
        [helper.make_node("ReduceMean", ["age"], ["y"]), helper.make_node("Identity", ["size"], ["z"])],
        two,
        {},
    )
    (tmp_path / "n.csv").write_text("size,age\n1,2\n3,4\n")
    onnxprune.data(tmp_path / "n.csv", model=named, output=tmp_path / "n.npz")
    made = np.load(tmp_path / "n.npz")
    assert made["age"].tolist() == [[2], [4]] and made["size"].tolist() == [1, 3]
    (tmp_path / "n.csv").write_text("size,age\n1,2\n3,old\n")
    with pytest.raises(BadInputError, match="line 3, column 2: 'old' is no number"):
        onnxprune.data(tmp_path / "n.csv", model=named, output=tmp_path / "n.npz")


def test_several_inputs_have_sources_of_their_own(tmp_path: Path, photos: Path) -> None:
    inputs = {"image": (TensorProto.FLOAT, ["n", 3, 8, 8]), "scale": (TensorProto.FLOAT, ["n", 1])}
    net = model(
        tmp_path / "m.onnx",
        [helper.make_node("ReduceMean", ["image"], ["y"]), helper.make_node("Identity", ["scale"], ["z"])],
        inputs,
        {},
    )
    np.save(tmp_path / "s.npy", np.ones((11, 1), np.float32))
    how: dict[str, Any] = {"model": net, "output": tmp_path / "c.npz", "preset": "0..1"}
    onnxprune.data(photos, inputs={"scale": tmp_path / "s.npy"}, **how)
    assert {k: v.shape for k, v in np.load(tmp_path / "c.npz").items()} == {"image": (11, 3, 8, 8), "scale": (11, 1)}
    load_data(tmp_path / "c.npz", graph_inputs(load(net).proto))
    with pytest.raises(BadInputError, match="Say which with --input"):
        onnxprune.data(photos, **how)
    with pytest.raises(BadInputError, match="Nothing feeds the input 'scale'"):
        onnxprune.data(inputs={"image": photos}, **how)
    with pytest.raises(BadInputError, match="is no input of the model"):
        onnxprune.data(photos, inputs={"sacle": tmp_path / "s.npy"}, **how)
    np.save(tmp_path / "s.npy", np.ones((5, 1), np.float32))
    with pytest.raises(BadInputError, match="different numbers of samples: scale 5, image 11"):
        onnxprune.data(photos, inputs={"scale": tmp_path / "s.npy"}, **how)


def test_samples_are_spread(tmp_path: Path, photos: Path) -> None:
    net = taking(tmp_path / "m.onnx", ["n", 3, 8, 8])
    onnxprune.data(photos, model=net, output=tmp_path / "c.npz", preset="0..1", samples=4)
    assert len(np.load(tmp_path / "c.npz")["x"]) == 4


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "does not exist"),
        ("photoz", r"'.*photos' is there"),
        ("empty", "holds nothing that is read"),
        ("broken", "None of 1 pictures can be read"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, photos: Path, source: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no")
    net = taking(tmp_path / "m.onnx", ["n", 3, 8, 8])
    with pytest.raises(BadInputError, match=said):
        onnxprune.data(tmp_path / source, model=net, output=tmp_path / "c.npz", preset="0..1")
    assert not (tmp_path / "c.npz").exists()


def test_from_pictures_to_a_pruned_model(tmp_path: Path) -> None:
    """The first hurdle in one command, the second in another."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for k, x in enumerate(np.load(ROOT / "models" / "digits_test.npz")["x"][:48]):
        low, high = x.min(), x.max()
        Image.fromarray(np.uint8((x[0] - low) / (high - low) * 255)).save(folder / f"{k:02}.png")
    done = CliRunner().invoke(
        main, ["data", str(folder), "--model", str(DIGITS), "-o", str(tmp_path / "c.npz"), "--preset", "0..1"]
    )
    assert done.exit_code == 0, done.stderr
    result = onnxprune.prune(DIGITS, Budget("macs", 0.6), data=tmp_path / "c.npz", benchmark=False)
    assert result.report.calibration.samples == 48


# ---------------------------------------------------------------- what a program feeds


def test_record_keeps_what_goes_by(tmp_path: Path) -> None:
    own = onnxruntime.InferenceSession(str(DIGITS))
    x = np.load(ROOT / "models" / "digits_test.npz")["x"]
    with onnxprune.record(own, tmp_path / "met.npz", samples=20) as session:
        assert [i.name for i in session.get_inputs()] == ["x"]
        for k in range(0, 60, 3):
            np.testing.assert_array_equal(
                session.run(None, {"x": x[k : k + 3]})[0], own.run(None, {"x": x[k : k + 3]})[0]
            )
        assert session.seen == 60 and not (tmp_path / "met.npz").exists()
    kept = np.load(tmp_path / "met.npz")["x"]
    assert kept.shape == (20, 1, 16, 16)
    places = [int(np.flatnonzero((x[:60] == sample).all(axis=(1, 2, 3)))[0]) for sample in kept]
    assert len(set(places)) >= 19 and max(places) >= 30  # not only the first
    assert (
        onnxprune.prune(
            DIGITS, Budget("macs", 0.6), data=tmp_path / "met.npz", benchmark=False
        ).report.calibration.samples
        == 20
    )


def test_record_of_several_threads_and_sizes(tmp_path: Path) -> None:
    net = taking(tmp_path / "m.onnx", ["n", "t"])
    session = onnxprune.record(onnxruntime.InferenceSession(str(net)), tmp_path / "met", samples=1000)

    def feed(seed: int) -> None:
        for k in range(25):
            session.run(None, {"x": np.full((1, 3 + (seed + k) % 2), seed, np.float32)})

    threads = [threading.Thread(target=feed, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(session.close()) == 100 == len(list((tmp_path / "met").glob("*.npz"))) and session.close() == []
    assert len(load_data(tmp_path / "met", graph_inputs(load(net).proto))) == 100
    mixed = onnxprune.record(onnxruntime.InferenceSession(str(net)), tmp_path / "met.npz")
    for n in (3, 3, 4):
        mixed.run(None, {"x": np.zeros((1, n), np.float32)})
    mixed.close()
    assert np.load(tmp_path / "met.npz")["x"].shape == (2, 3)


def test_a_program_is_recorded_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "mine.py"
    program.write_text(
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "for k in range(int(sys.argv[3])):\n"
        "    session.run(None, {'x': numpy.full((1, 1, 16, 16), k, numpy.float32)})\n"
    )
    done = CliRunner().invoke(main, ["record", str(tmp_path / "met.npz"), str(program), str(DIGITS), "--times", "7"])
    assert done.exit_code == 0, done.output
    assert sorted(np.load(tmp_path / "met.npz")["x"][:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5, 6]
    assert onnxruntime.InferenceSession.__module__.startswith("onnxruntime")
    program.write_text("pass\n")
    none = CliRunner().invoke(main, ["record", str(tmp_path / "n.npz"), str(program)])
    assert none.exit_code == 2 and "ran no ONNX Runtime session" in none.stderr


def test_record_takes_sessions_only(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"takes an onnxruntime\.InferenceSession, not str"):
        onnxprune.record("model.onnx", tmp_path / "met.npz")


def test_what_is_missing_is_named(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(BadInputError, match=r"pip install 'onnxprune\[data\]'"):
        onnxprune.data(
            photos, model=taking(tmp_path / "m.onnx", ["n", 3, 8, 8]), output=tmp_path / "c.npz", preset="0..1"
        )
