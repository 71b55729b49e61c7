"""Train the small residual network `digits.onnx` and the small transformer `digits_vit.onnx`, and write their feed files.

A conv stem, three residual stages (16, 32 and 64 channels), global average pooling and a Gemm; and 16 patches of 4 x 4,
three blocks of attention (4 heads of 12) and a hidden layer of 144, the mean of the patches and a Gemm; both on
scikit-learn's `load_digits` (1797 images of 8 x 8, ten classes), enlarged to 16 x 16 by repeating pixels. One seed
and one thread: the same versions on the same kind of machine write the same weights.

    pip install torch==2.13.0 onnx onnxscript scikit-learn
    python models/train_digits.py

writes `digits.onnx`, `digits_vit.onnx`, `digits_test.npz` and `digits_train.npz` (`x` and `labels`), and `digits_calib.npz` (`x` alone:
128 training images). The array `x` bears the name of the model's input, so both are feed files.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

WIDTHS = (16, 32, 64)
TEST_IMAGES = 450
CALIBRATION_IMAGES = 128


class Split(NamedTuple):
    """Images `[N, 1, 16, 16]` float32 in [0, 1] and labels `[N]` int64, for training and test."""

    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the shortcut is a 1 x 1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """`[N, 1, 16, 16]` to logits `[N, 10]`."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.stage1 = Residual(first, first, 1)
        self.stage2 = Residual(first, second, 2)
        self.stage3 = Residual(second, third, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(third, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 1, 16, 16]` to logits `[N, 10]`."""
        y = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: torch.Tensor = self.head(torch.flatten(self.pool(y), 1))
        return logits


class Block(nn.Module):
    """Attention, then a hidden layer, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, patches, width]` to the same."""
        n, patches, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, patches, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(seen.transpose(1, 2).reshape(n, patches, width))
        out: torch.Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return out


class DigitsTransformer(nn.Module):
    """`[N, 1, 16, 16]` to logits `[N, 10]`."""

    def __init__(self, width: int = 48, heads: int = 4, hidden: int = 144, blocks: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, 1, 16, 16]` to logits `[N, 10]`."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: torch.Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


def load_split() -> Split:
    """The fixed split: 450 test images, the rest for training, classes in equal shares."""
    digits = load_digits()
    pixels = (digits.images / 16.0).astype(np.float32)
    images = pixels.repeat(2, axis=1).repeat(2, axis=2)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(
        images,
        digits.target.astype(np.int64),
        test_size=TEST_IMAGES,
        random_state=0,
        stratify=digits.target,
    )
    return Split(train_x, train_y, test_x, test_y)


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch moved by up to two pixels up, down, left and right, zeros moving in."""
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    height, width = x.shape[2:]
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    return padded[:, :, dy : dy + height, dx : dx + width]


def train(network: Callable[[], nn.Module], split: Split, epochs: int, seed: int) -> nn.Module:
    """A trained network in evaluation mode."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(seed)

    net = network()
    x, y = torch.from_numpy(split.train_x), torch.from_numpy(split.train_y)
    batch = 64
    batches = -(-len(x) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in torch.split(order, batch):
            optimizer.zero_grad()
            loss_of(net(shifted(x[rows], generator)), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: nn.Module, path: Path) -> None:
    """Write the network with a dynamic batch, opset 18, and nothing of this machine in it."""
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 1, 16, 16),),
        input_names=["x"],
        output_names=["logits"],
        opset_version=18,
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = without_provenance(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def without_provenance(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without doc strings and metadata, where exporters put stack traces and file paths."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    values = [*bare.graph.input, *bare.graph.output, *bare.graph.value_info]
    for part in (bare, bare.graph, *bare.graph.node, *bare.graph.initializer, *values):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return bare


def accuracy(net: nn.Module, split: Split) -> float:
    """Top-1 accuracy on the test images."""
    with torch.no_grad():
        predicted = net(torch.from_numpy(split.test_x)).argmax(1).numpy()
    return float((predicted == split.test_y).mean())


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a compressed .npz file."""
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def main() -> None:
    """Train, export and write the feed files."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train digits.onnx and digits_vit.onnx, and write their feed files.")
    parser.add_argument("--to", type=Path, default=here, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    split = load_split()
    args.to.mkdir(parents=True, exist_ok=True)
    for network, name in ((DigitsNet, "digits"), (DigitsTransformer, "digits_vit")):
        net = train(network, split, args.epochs * (3 if network is DigitsTransformer else 1), args.seed)
        export(net, args.to / f"{name}.onnx")
        print(f"{name}: test top-1 {accuracy(net, split):.4f} on {len(split.test_y)} images")
    save_arrays(args.to / "digits_test.npz", {"x": split.test_x, "labels": split.test_y})
    save_arrays(args.to / "digits_train.npz", {"x": split.train_x, "labels": split.train_y})
    save_arrays(args.to / "digits_calib.npz", {"x": split.train_x[:CALIBRATION_IMAGES]})


if __name__ == "__main__":
    main()
