"""ImageNet, for those who have it: top-1 of an exported classifier before and after `prune`, by the protocol of the published tables.

    python tests/benchmarks/imagenet.py deit_small.onnx --val imagenet/val --train imagenet/train --macs 0.57

The classes are the names of the subfolders of --val, sorted (as torchvision's ImageFolder numbers them): class k is output k. Every image of
them is tested: its shorter side is scaled to size / crop, bicubic, the middle square is cut out, and `(pixel / 255 - mean) / std` goes in
as [N, 3, size, size]. Calibrated is on --samples images of --train (any folder of images), drawn by --seed and prepared alike, with no labels; at
each share of the MACs of --macs. Size and crop of published figures: DeiT and ResNet-50 224 and 0.875, ConvNeXt-T 224 and 0.875.
Size is the model's own, where it fixes it. `--tune MINUTES` also trains. The table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from onnxprune import Budget, OnnxPruneError  # noqa: E402
from onnxprune.model.loaded import Model  # noqa: E402
from onnxprune.runtime import VERSION, Session, graph_inputs  # noqa: E402

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """size: of the square that goes in; crop: its share of the scaled image's shorter side. mean, std: of each colour, in 0 to 1."""

    size: int = 224
    crop: float = 0.875
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def prepared(self, path: Path) -> Floats:
        """`[3, size, size]`."""
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        scale = round(self.size / self.crop) / min(image.size)
        width, height = (max(self.size, round(n * scale)) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)), np.float32) / 255
        return ((pixels - np.float32(self.mean)) / np.float32(self.std)).transpose(2, 0, 1).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--val", type=Path, required=True, help="a folder with a subfolder of images per class")
    parser.add_argument("--train", type=Path, required=True, help="a folder of images to calibrate on")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.57], help="shares of the MACs that may be left")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tune", type=float, help="minutes of training after the repair")
    parser.add_argument("--size", type=int, default=Protocol.size, help="where the model leaves it open")
    parser.add_argument("--crop", type=float, default=Protocol.crop)
    parser.add_argument("--mean", type=float, nargs=3, default=Protocol.mean)
    parser.add_argument("--std", type=float, nargs=3, default=Protocol.std)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    how = parser.parse_args(arguments)
    for folder in (how.val, how.train):
        if not folder.is_dir():
            parser.error(f"{folder} is no folder; --val holds one subfolder of images per class, --train any images")
    original = onnx.load(how.model)
    name, size = shape_of(original, how.size)
    protocol = Protocol(size, how.crop, tuple(how.mean), tuple(how.std))
    tested = labelled(how.val)
    if not tested:
        parser.error(f"{how.val} holds no images in subfolders; give the folder whose subfolders are the classes")
    print(
        f"onnxprune {onnxprune.__version__}, onnxruntime {VERSION}, {len(tested):,} images, {how.samples} to calibrate on.\n"
    )
    print("| MACs | parameters | top-1 |\n|---:|---:|---:|")
    print(f"| 1 | 1 | {top1(original, name, tested, protocol, how.batch, how.threads):.4f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "calibration.npz"
        np.savez(data, **{name: np.stack([protocol.prepared(p) for p in drawn(how.train, how.samples, how.seed)])})
        for share in how.macs:
            options: dict[str, Any] = {"data": data, "samples": how.samples, "seed": how.seed, "tune": how.tune}
            try:
                result = onnxprune.prune(how.model, Budget("macs", share), benchmark=False, **options)
            except OnnxPruneError as error:
                print(f"| {share} | not reached | {error} |", flush=True)
                continue
            plan = result.plan
            kept = [f"{pair.after / pair.before:.3f}" for pair in (plan.macs, plan.params)]
            found = top1(result.model, name, tested, protocol, how.batch, how.threads)
            print(f"| {kept[0]} | {kept[1]} | {found:.4f} |", flush=True)


def shape_of(model: onnx.ModelProto, size: int) -> tuple[str, int]:
    """The input's name, and the side of the square: the model's own where it has one. Exits where the model takes no images."""
    given = graph_inputs(model)
    dims = [list(v.type.tensor_type.shape.dim) for v in given]
    if len(given) != 1 or len(dims[0]) != 4 or dims[0][1].dim_value not in (0, 3):
        sys.exit("error: the model must have one input [N, 3, height, width]; export it so")
    sides = {d.dim_value for d in dims[0][2:]} - {0}
    if len(sides) > 1:
        sys.exit("error: the model takes images that are not square; this protocol has none")
    return given[0].name, sides.pop() if sides else size


def labelled(folder: Path) -> list[tuple[Path, int]]:
    """Images and their classes: the place of their subfolder among all, by name."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    return [(path, k) for k, of in enumerate(classes) for path in images_in(of)]


def images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def drawn(folder: Path, count: int, seed: int) -> list[Path]:
    """`count` images at random, all where there are fewer. Exits where there is none."""
    every = images_in(folder)
    if not every:
        sys.exit(f"error: {folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    order = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[k] for k in order]


def batches(tested: Sequence[tuple[Path, int]], size: int) -> Iterator[Sequence[tuple[Path, int]]]:
    for first in range(0, len(tested), size):
        yield tested[first : first + size]


def top1(
    model: onnx.ModelProto, name: str, tested: Sequence[tuple[Path, int]], protocol: Protocol, batch: int, threads: int
) -> float:
    """Share of images whose largest output is that of their class."""
    fixed = graph_inputs(model)[0].type.tensor_type.shape.dim[0].dim_value
    session, right = Session(Model(model), optimized=True, threads=threads), 0
    for part in batches(tested, fixed or batch):
        x = np.stack([protocol.prepared(path) for path, _ in part])
        if fixed and len(x) < fixed:  # the last images, with the first of them again
            x = np.concatenate([x, np.repeat(x[:1], fixed - len(x), axis=0)])
        found = session.run({name: x})[0][: len(part)].argmax(axis=1)
        right += int((found == [label for _, label in part]).sum())
    return right / len(tested)


if __name__ == "__main__":
    main()
