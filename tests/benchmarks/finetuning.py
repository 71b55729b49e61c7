"""Fine-tuning without labels next to Torch-Pruning and fine-tuning with labels, on the same data in the same time.

    python tests/benchmarks/finetuning.py --nets FOLDER [--steps 2000] [--only TEXT] [--markdown FILE]

The folder holds the networks and `digits.npz` (see peers.py). Ours: `onnxprune prune --macs F` with 128 unlabelled images, then
`onnxprune finetune` with the original as teacher and all training images, unlabelled. Torch-Pruning: its global Taylor pruner (labels
and gradients) to the same MACs, then the same optimizer, schedule and augmentation with the labels and no teacher; it gets 1.7 times
the steps, which is at least the time that ours spends on the teacher. "onnxprune, labels" is our start with the peer's training. The seconds are CPU time, whatever else the machine does.
Either starts from what its own pruner leaves. Held-out samples are a tenth of the training images; the test images only score.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's, whatever is installed
import onnxprune
from onnxprune.api.finetune import finetune
from tests.benchmarks import peers

TARGETS = (("vgg", 0.15), ("vgg", 0.08), ("mobilenetv2", 0.3), ("mobilenetv2", 0.15))
BARS = {("vgg", 0.15): 0.975, ("vgg", 0.08): 0.965, ("mobilenetv2", 0.3): 0.950, ("mobilenetv2", 0.15): 0.930}
MORE = 1.7  # steps of the peer per step of ours
PEER = "Torch-Pruning Taylor, global (labels and gradients)"


@dataclass(frozen=True)
class Row:
    net: str
    target: float
    method: str
    kept: float
    start: float
    end: float
    seconds: float
    steps: int

    def line(self, original: float) -> str:
        bar = BARS[self.net, self.target]
        return (
            f"| {self.net} ({original:.3f}) | {self.target:g} | {self.method} | {self.kept:.3f} | {self.start:.3f} | "
            f"{self.end:.3f} | {bar:.3f} | {self.seconds:.0f} | {self.steps} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, metavar="DIR", help="folder of networks and digits.npz")
    parser.add_argument("--steps", type=int, default=2000, help="of ours")
    parser.add_argument("--only", default="", metavar="TEXT", help="methods with this in their name")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = peers.read_data(given.nets / "digits.npz", Path(folder) / "calibration.npz")
        training = training_data(given.nets / "digits.npz", Path(folder) / "training.npz")
        lines = []
        for name, target in TARGETS:
            net = peers.read_net(given.nets / f"{name}.onnx", data)
            for method, run in METHODS.items():
                if given.only.lower() in method.lower():
                    lines.append(run(net, target, training, given.steps, Path(folder)).line(net.top1))
                    print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join([HEAD, *lines, "", note(given.steps)])
    print(text)
    if given.markdown:
        given.markdown.write_text(text + "\n", encoding="utf-8")


HEAD = """| network (top-1) | MACs | method | kept | pruned | tuned | bar | CPU s | steps |
|---|---:|---|---:|---:|---:|---:|---:|---:|"""


def note(steps: int) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in peers.versions().items())
    return f"Top-1 on the test images; {steps} steps of ours; seconds are of CPU time, all threads and pruning together; {versions}."


def training_data(path: Path, target: Path) -> Path:
    """All training images, named like the networks' input, and their labels."""
    with np.load(path) as file:
        images = file["Xtr"].astype(np.float32) / 255 * 3 - 1
        np.savez(target, input=images, labels=file["ytr"].astype(np.int64))
    return target


def ours(net: peers.Net, target: float, training: Path, steps: int, folder: Path) -> Row:
    begin = time.process_time()
    start, pruned = our_start(net, target, folder)
    options: dict[str, Any] = {"steps": steps, "patience": 0}
    tuned = finetune(start, net.path, data=training, **options)
    return row(net, target, "onnxprune, no labels", pruned, tuned, time.process_time() - begin)


def ours_with_labels(net: peers.Net, target: float, training: Path, steps: int, folder: Path) -> Row:
    begin = time.process_time()
    start, pruned = our_start(net, target, folder)
    options: dict[str, Any] = {"steps": round(MORE * steps), "patience": 0, "labels": "labels"}
    tuned = finetune(start, None, data=training, **options)
    return row(net, target, "onnxprune, labels", pruned, tuned, time.process_time() - begin)


def our_start(net: peers.Net, target: float, folder: Path) -> tuple[Path, onnx.ModelProto]:
    pruned = onnxprune.prune(net.path, onnxprune.Budget("macs", target), data=net.data.file, benchmark=False).model
    start = folder / "pruned.onnx"
    onnx.save(pruned, start)
    return start, pruned


def torch_pruning(net: peers.Net, target: float, training: Path, steps: int, folder: Path) -> Row:
    method = peers.METHODS[PEER]
    assert isinstance(method, peers.Peer)
    begin = time.process_time()

    def attempt(ratio: float) -> tuple[float, onnx.ModelProto]:
        model = method.prune(net, ratio)
        return peers.macs(model) / net.macs, model

    _, pruned = peers.closest(attempt, target)
    start = folder / "peer.onnx"
    onnx.save(pruned, start)
    options: dict[str, Any] = {"steps": round(MORE * steps), "patience": 0, "labels": "labels"}
    tuned = finetune(start, None, data=training, **options)
    return row(net, target, "Torch-Pruning, labels", pruned, tuned, time.process_time() - begin)


def row(net: peers.Net, target: float, method: str, pruned: onnx.ModelProto, tuned: Any, seconds: float) -> Row:
    kept, scores = peers.macs(pruned) / net.macs, [peers.top1(m, net.data) for m in (pruned, tuned.model)]
    return Row(net.name, target, method, kept, scores[0], scores[1], seconds, tuned.trained.steps)


METHODS = {
    "onnxprune, no labels": ours,
    "onnxprune, labels": ours_with_labels,
    "Torch-Pruning, labels": torch_pruning,
}


if __name__ == "__main__":
    main()
