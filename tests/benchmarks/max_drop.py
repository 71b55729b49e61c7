"""Does `--max-drop` keep its promise? python tests/benchmarks/max_drop.py [--nets FOLDER] [--limits 0.01,0.02,0.05] [--seeds 20]

For every seed the images are shuffled, some are given as --data, and the loss of what is written is measured on the others: of `models/digits.onnx`
450 others of 1,797, so that given and measured ones are of one kind (the promise is about such); of the networks in FOLDER (`*.onnx`, `digits.npz`)
the 1,000 test images, which no run is given. A limit is kept where the loss on these is no larger; 450 images are off by 0.005 or so themselves.
Markdown goes to stdout, a line per run to stderr.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import onnxprune
from onnxprune import Budget, TargetNotReachableError

MODELS = Path(__file__).resolve().parents[2] / "models"
Images = NDArray[Any]
Split = Callable[[int], tuple[Images, Images, Images, Images]]  # seed -> given images and labels, others and theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nets", type=Path, help="folder with classifiers and digits.npz")
    parser.add_argument("--limits", default="0.01,0.02,0.05")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=256, help="to fit with and hold out")
    parser.add_argument("--metric", default="top1", help="top1, or accuracy (with the labels)")
    given = parser.parse_args()
    print(
        "| network | metric | limit | written | kept on others | loss on others: mean, largest | MACs removed, median | seconds |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for net, split in nets(given.nets):
        for limit in map(float, given.limits.split(",")):
            print(row(net, split, given.metric, limit, given.seeds, given.samples), flush=True)


def nets(folder: Path | None) -> Iterator[tuple[Path, Split]]:
    if folder is None:
        parts = [np.load(MODELS / f"digits_{name}.npz") for name in ("train", "test")]
        x, y = (np.concatenate([p[n] for p in parts]) for n in ("x", "labels"))

        def shuffled(seed: int) -> tuple[Images, Images, Images, Images]:
            order = np.random.default_rng(seed).permutation(len(x))
            return x[order[450:]], y[order[450:]], x[order[:450]], y[order[:450]]

        yield MODELS / "digits.onnx", shuffled
        return
    data = np.load(folder / "digits.npz")
    train, test = ((data[n] / 255 * 3 - 1).astype(np.float32) for n in ("Xtr", "Xte"))
    train, test = (t.reshape(len(t), 1, 32, 32) for t in (train, test))

    def drawn(seed: int) -> tuple[Images, Images, Images, Images]:
        order = np.random.default_rng(seed).permutation(len(train))[:1500]
        return train[order], data["ytr"][order], test, data["yte"]

    for path in sorted(folder.glob("*.onnx")):
        yield path, drawn


def row(net: Path, split: Split, metric: str, limit: float, seeds: int, samples: int) -> str:
    lost, removed, seconds = [], [], []
    for seed in range(seeds):
        x, y, others, labels = split(seed)
        start = time.perf_counter()
        kept, model = pruned(net, x, y, metric, limit, seed, samples)
        seconds.append(time.perf_counter() - start)
        removed.append(1 - kept)
        if model is not None:
            before, after = (answers(m, others) for m in (net.read_bytes(), model))
            wrong = before != after if metric == "top1" else (before == labels) * 1.0 - (after == labels)
            lost.append(float(wrong.mean()))
        print(
            f"{net.stem} {metric} {limit:g} seed {seed}: kept {kept:.3f}, lost {lost[-1:] if model else '-'}",
            file=sys.stderr,
        )
    held = sum(x <= limit for x in lost)
    found = f"{np.mean(lost):.4f}, {max(lost):.4f}" if lost else "-"
    return (
        f"| {net.stem} | {metric} | {limit:g} | {len(lost)} of {seeds} | {held} of {len(lost)} | {found} | "
        f"{np.median(removed):.1%} | {np.median(seconds):.0f} |"
    )


def pruned(
    net: Path, x: Images, y: Images, metric: str, limit: float, seed: int, samples: int
) -> tuple[float, bytes | None]:
    """The share of the MACs that is kept, and the model; all and none where nothing can be promised."""
    session = ort.InferenceSession(net)
    inputs, outputs = session.get_inputs()[0].name, session.get_outputs()[0].name
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **{inputs: x}, labels=y)
        name = metric
        if metric != "top1":
            (Path(folder) / f"score_{net.stem}.py").write_text(
                f"def accuracy(outputs, data):\n    return (outputs['{outputs}'].argmax(axis=1) == data['labels']).mean()\n"
            )
            sys.path.insert(0, folder)
            name = f"score_{net.stem}:accuracy"
        try:
            data, budget = Path(folder) / "data.npz", Budget("max_drop", limit)
            result = onnxprune.prune(net, budget, data=data, metric=name, seed=seed, samples=samples, benchmark=False)
        except TargetNotReachableError as refusal:
            print(refusal, file=sys.stderr)
            return 1.0, None
    before, after = result.report.cost.macs
    return after / before, result.model.SerializeToString()


def answers(model: bytes, images: Images) -> Images:
    session = ort.InferenceSession(model)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0].argmax(axis=1))


if __name__ == "__main__":
    main()
