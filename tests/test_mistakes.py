"""A mistake of each kind, as a new user makes it on the command line, ends in one sentence that says what to do; nothing is written.

Gates and configs: tests/test_pipeline.py. Files that are broken on purpose: tests/test_cli.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.fetch import REAL
from tests.oracle import net
from tests.test_cli import network, refused, run

MODELS = Path(__file__).resolve().parent.parent / "models"
NETS = MODELS.parent.parent / "shared" / "nets"
IMAGE = np.random.default_rng(0).standard_normal((8, 3, 6, 6)).astype(np.float32)
TARGET = ("-o", "s.onnx", "--ratio", "0.5")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and inputs for it, which is also the working directory."""
    (tmp_path / "nets").mkdir()
    onnx.save(network(), tmp_path / "nets" / "model.onnx")
    np.savez(tmp_path / "pictures.npz", image=IMAGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(folder: Path, *options: object, code: int = 2) -> str:
    return refused(folder, code, "prune", "nets/model.onnx", *TARGET, *options)


@pytest.mark.parametrize("path", ["nets/modle.onnx", "net/model.onnx", "Nets/Model.ONNX", "nets/model.onxx"])
def test_a_path_that_is_almost_right(here: Path, path: str) -> None:
    for command in (("prune", path, *TARGET), ("inspect", path), ("bench", path)):
        assert refused(here, 2, *command).endswith("did you mean 'nets/model.onnx'?")


def test_a_path_that_is_far_off(here: Path) -> None:
    assert refused(here, 2, "inspect", "resnet50.onnx").endswith("There is no file 'resnet50.onnx'; check the path.")


def test_other_files_that_are_almost_right(here: Path) -> None:
    assert said(here, "--data", "picture.npz").endswith("did you mean 'pictures.npz'?")
    Path("plan.json").write_text("{}")
    line = refused(here, 2, "prune", "nets/model.onnx", "-o", "s.onnx", "--apply", "plans.json")
    assert line.endswith("did you mean 'plan.json'?")
    Path("prune.yaml").write_text("models: []")
    assert refused(here, 2, "run", "prun.yaml").endswith("did you mean 'prune.yaml'?")


def test_a_model_in_the_place_of_the_config(here: Path) -> None:
    assert refused(here, 2, "run", "nets/model.onnx").endswith("give a YAML file, such as onnxprune init MODEL writes.")


def test_all_that_was_written_is_named(here: Path) -> None:
    done = run("prune", "nets/model.onnx", *TARGET, "--plan", "p.json", "--report", "r.md")
    assert done.exit_code == 0 and done.output.endswith("wrote     s.onnx, p.json, r.md\n")


def test_sizes_that_nobody_knows(here: Path) -> None:
    """The sentence has the option, with the input's own name; what it says works."""
    text = "g (float[N,3,H,W] photo) => (float[N,M] y) <float[8,3,3,3] w, int64[2] s, float[W0,5] v> {".replace(
        "W0", "968"
    )
    model = net(
        text + "c = Conv(photo, w) r = Relu(c) f = Reshape(r, s) y = MatMul(f, v) }",
        constants={"s": np.array([0, -1])},
    )
    onnx.save(model, "free.onnx")
    line = refused(here, 2, "prune", "free.onnx", *TARGET)
    assert "--input-shape photo:1,3,224,224 (your sizes)" in line
    assert run("prune", "free.onnx", *TARGET, "--input-shape", "photo:1,3,13,13", "-q").exit_code == 0
    near = refused(here, 2, "prune", "free.onnx", *TARGET, "--input-shape", "photos:1,3,13,13")
    assert near.endswith("did you mean 'photo'?")


def test_a_target_out_of_reach(here: Path) -> None:
    line = refused(here, 3, "prune", "nets/model.onnx", "-o", "s.onnx", "--macs", "0.0001")
    assert "cannot be reached: at most down to 0." in line and "Try a larger value" in line
    assert "--include-inexact" not in line  # it would free nothing here, where no norm holds anything
    held = refused(here, 3, "prune", str(MODELS / "digits_vit.onnx"), "-o", "s.onnx", "--macs", "0.0001")
    assert held.endswith("Try a larger value or --include-inexact.") and " of 2,384,832 MACs)" in held


@pytest.mark.parametrize(
    ("image", "way"),
    [
        (
            IMAGE.transpose(0, 2, 3, 1),
            "its pictures have channels last, so move the axes: array.transpose(0, 3, 1, 2).",
        ),
        (IMAGE[:, :, :, :5], "axis 3 must have size 6, not 5."),
        (IMAGE[0], "put a batch axis first: [1, 3, 6, 6]."),
        (IMAGE.reshape(8, -1), "it must have 4 axes, not 2."),
        (IMAGE.astype(np.complex64), "the model wants float32; convert it first: array.astype('float32')."),
    ],
)
def test_data_of_another_shape_or_type(here: Path, image: np.ndarray, way: str) -> None:
    np.savez("d.npz", image=image)
    assert said(here, "--data", "d.npz").endswith(way)
    if "transpose" in way:
        np.savez("d.npz", image=image.transpose(0, 3, 1, 2))
        assert run("prune", "nets/model.onnx", *TARGET, "--data", "d.npz", "-q").exit_code == 0


@pytest.mark.parametrize(
    ("arrays", "way"),
    [
        ({"images": IMAGE}, "(it has: images); save 'images' as 'image'."),
        ({"x": IMAGE}, "(it has: x); save 'x' as 'image'."),
        ({"imgae": IMAGE, "labels": np.arange(8)}, "save 'imgae' as 'image'."),
        ({"x": IMAGE, "y": np.arange(8)}, "(it has: x, y); name arrays like the model's inputs."),
    ],
)
def test_data_with_other_names(here: Path, arrays: dict[str, np.ndarray], way: str) -> None:
    np.savez("d.npz", **arrays)
    assert said(here, "--data", "d.npz").endswith(way)


@pytest.mark.parametrize(
    ("content", "way"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a picture, not an ONNX model; give the .onnx file."),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is a picture, not an ONNX model; give the .onnx file."),
        (
            b"\x93NUMPY\x01\x00" + bytes(100),
            "is an array of NumPy, not an ONNX model; give the .onnx file, and inputs with --data.",
        ),
        (b"conv1 3 64\n" * 20, "check the path, or fetch or export it again."),
    ],
)
def test_what_is_no_model(here: Path, content: bytes, way: str) -> None:
    Path("m.onnx").write_bytes(content)
    assert refused(here, 2, "inspect", "m.onnx").endswith(way)


def test_the_inputs_in_the_place_of_the_model(here: Path) -> None:
    assert "give the .onnx file here, and inputs with --data" in refused(here, 2, "inspect", "pictures.npz")


def test_a_download_that_broke_off(here: Path) -> None:
    whole = (MODELS / "digits.onnx").read_bytes()
    Path("m.onnx").write_bytes(whole[: len(whole) // 2])
    line = refused(here, 2, "prune", "m.onnx", *TARGET)
    assert "is cut short or damaged" in line and line.endswith("copy, fetch or export it again.")


def test_weights_left_behind(here: Path) -> None:
    onnx.save(network(), "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    Path("weights.bin").rename("nets/weights.bin")
    line = refused(here, 2, "prune", "m.onnx", *TARGET)
    assert "file 'weights.bin' does not exist; put it beside the model" in line


@pytest.mark.parametrize(
    ("output", "way"),
    [
        ("nets", "is a folder; give a file name."),
        ("nets/model.onnx", "choose another name."),
        ("pictures.npz/s.onnx", "choose another place."),
    ],
)
def test_an_output_that_cannot_be(here: Path, output: str, way: str) -> None:
    assert refused(here, 2, "prune", "nets/model.onnx", "-o", output, "--ratio", "0.5").endswith(way)


# ---------------------------------------------------------------- scale

NORM = """g (float[N,3,8,8] x) => (float[N,5] y)
    <float[8,3,3,3] w, float[8] b, float[8] g0, float[8] b0, float[8] m, float[8] v, float[8,5] h> {
    c = Conv(x, w, b)
    n = BatchNormalization(c, g0, b0, m, v)
    r = Relu(n)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = MatMul(f, h)
}"""


def warned(model: Path | str, name: str, values: np.ndarray) -> list[str]:
    """Warnings of `inspect` about the scale of the inputs."""
    np.savez("scale.npz", **{name: values.astype(np.float32)})
    result = run("inspect", model, "--data", "scale.npz")
    assert result.exit_code == 0, result.output
    return [line for line in result.stdout.splitlines() if line.startswith("warning: ")]


def trained(image: np.ndarray, normed: bool) -> onnx.ModelProto:
    """A model with the statistics of these images: in its batch normalisation, or folded into the convolution."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    model = net(NORM, constants={"v": np.ones(8, np.float32)})
    values = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    model.graph.output.append(onnx.helper.make_tensor_value_info("c", TensorProto.FLOAT, None))
    seen = ReferenceEvaluator(model).run(["c"], {"x": image})[0]
    del model.graph.output[-1]
    values["m"], values["v"] = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3))
    values["g0"], values["b0"] = np.ones(8, np.float32), np.linspace(-0.8, 0.9, 8).astype(np.float32)
    if not normed:
        factor = values["g0"] / np.sqrt(values["v"])
        values["b"] = (values["b"] - values["m"]) * factor + values["b0"]
        values["w"] *= factor[:, None, None, None]
        node = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
        next(n for n in model.graph.node if n.op_type == "Relu").input[0] = "c"
        model.graph.node.remove(node)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name], np.float32), tensor.name))
    return model


@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize("normed", [True, False])
def test_the_scale_that_a_model_was_trained_with(here: Path, normed: bool, scale: float) -> None:
    """Of right inputs nothing is said, be they bytes; of others what is wrong, by `inspect` and by `prune`."""
    rng = np.random.default_rng(1)
    right, others = (np.rint(rng.random((16, 3, 8, 8)) * 255) * (scale / 255) for _ in range(2))
    onnx.save(trained(right.astype(np.float32), normed), "t.onnx")
    assert warned("t.onnx", "x", others) == []
    wrong = others * 255 if scale == 1 else others / 255
    (line,) = warned("t.onnx", "x", wrong)
    assert "'x' goes from 0 to " in line and "scale the inputs as in training" in line
    assert ("BatchNormalization" if normed else "Conv") in line
    result = run("prune", "t.onnx", *TARGET, "--data", "scale.npz")
    assert result.exit_code == 0 and result.stdout.count("scale the inputs as in training") == 1


def test_stored_statistics_tell_normalised_pictures_from_others(here: Path) -> None:
    """Pixels of [0, 1] where they are to have mean 0 and deviation 1."""
    pixels = np.clip(np.random.default_rng(2).normal(0.45, 0.22, (32, 3, 8, 8)), 0, 1)
    onnx.save(trained(((pixels - 0.45) / 0.22).astype(np.float32), True), "t.onnx")
    assert warned("t.onnx", "x", (pixels - 0.45) / 0.22) == []
    (line,) = warned("t.onnx", "x", pixels)
    assert "varies 0.2" in line and "times as much as in training" in line


def test_a_model_that_takes_any_scale_says_nothing(here: Path) -> None:
    text = NORM.replace("BatchNormalization(c, g0, b0, m, v)", "InstanceNormalization(c, g0, b0)").replace(
        "float[8] m, float[8] v, ", ""
    )
    onnx.save(net(text), "t.onnx")
    values = np.random.default_rng(3).random((8, 3, 8, 8)) * 255
    assert warned("t.onnx", "x", values) == []
    (line,) = warned("t.onnx", "x", np.rint(values))
    assert "whole numbers of up to 128 and more" in line, "the model does not tell"


def test_a_network_for_bytes_without_norms_is_believed(here: Path) -> None:
    """As those of Caffe: the first numbers are large, and it brings them down by itself."""
    from onnx import numpy_helper

    text = NORM.replace("n = BatchNormalization(c, g0, b0, m, v)", "n = Identity(c)")
    model = net(text.replace("float[8] g0, float[8] b0, float[8] m, float[8] v, ", ""))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) * {"w": 5.0, "h": 1e-3}.get(tensor.name, 0.2)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    onnx.save(model, "t.onnx")
    values = np.random.default_rng(4).random((8, 3, 8, 8)) * 255
    assert warned("t.onnx", "x", values - 127) == []


@pytest.mark.parametrize("name", ["digits", "digits_vit"])
def test_scale_of_trained_models(here: Path, name: str) -> None:
    right = np.load(MODELS / "digits_calib.npz")["x"][:64]
    for values, count in ((right, 0), (right * 255, 1), (right / 255, 1)):
        assert len(warned(MODELS / f"{name}.onnx", "x", values)) == count


@pytest.mark.skipif(not (NETS / "digits.npz").exists(), reason="the nets of ../shared are not there")
@pytest.mark.parametrize("name", ["mobilenetv2", "vgg"])
def test_scale_of_trained_nets(here: Path, name: str) -> None:
    pixels = np.load(NETS / "digits.npz")["Xtr"][:64].astype(np.float32)
    for values, count in ((pixels / 255 * 3 - 1, 0), (pixels, 1), (pixels / 255 / 255, 1)):
        assert len(warned(NETS / f"{name}.onnx", "input", values)) == count


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL / "efficientnet_lite0.onnx").exists(), reason="not fetched: models/fetch.py efficientnet_lite0 stamps"
)
def test_scale_of_photographs(here: Path) -> None:
    """EfficientNet-Lite0 wants (x - 127) / 128."""
    from models import scores

    feeds = scores.calibration("efficientnet_lite0", 12)
    right = np.concatenate([feed["x"] for feed in feeds])
    for values, count in ((right, 0), (right * 128 + 127, 1), (right / 255, 1)):
        assert len(warned(REAL / "efficientnet_lite0.onnx", "x", values)) == count
