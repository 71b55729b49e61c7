"""The allocator on costs of other kinds and on real networks: python tests/benchmarks/allocator.py --nets FOLDER

First the kept share and the damage for costs on plain numbers (six groups of 64 units, target 0.5); then networks in FOLDER (`vgg.onnx`,
`mobilenetv2.onnx`, `resnet20.onnx`, `digits.npz`) at 0.5, 0.3 and 0.15 of the MACs, calibrated on several sets of 128 images: divergence from the
original on all images that no run saw, top-1 and MACs kept. Markdown goes to stdout. To compare with another version of the program, put it first
in PYTHONPATH and give `--only-nets`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

import onnxprune
from onnxprune import Budget

TARGETS = (0.5, 0.3, 0.15)
UNITS = 64
IMAGES = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nets", type=Path, required=True, help="folder with classifiers and digits.npz")
    parser.add_argument("--only-nets", action="store_true", help="leave out the costs on plain numbers")
    parser.add_argument("--sets", type=int, default=5, help="of 128 calibration images")
    arguments = parser.parse_args()
    if not arguments.only_nets:
        costs_table()
    nets_table(arguments.nets, arguments.sets)


def costs_table() -> None:
    from onnxprune.choose.spend import spend

    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2.0, 6)
    noise = {(k, n): x for k in range(6) for n, x in enumerate(rng.normal(0, 0.03, UNITS + 1))}
    curves = [scale * (np.arange(UNITS) / UNITS) ** 3 for scale in rng.uniform(0.05, 1.0, 6)]
    widths = [tuple(range(58))] * 6
    kinds: dict[str, Callable[[int, int], float]] = {
        "linear": lambda k, n: 1 - n / UNITS,
        "staircase of 16": lambda k, n: -(-(UNITS - n) // 16) / 4,
        "concave": lambda k, n: (1 - n / UNITS) ** 0.5,
        "noisy": lambda k, n: 1 - n / UNITS + noise[k, n],
        "constant": lambda k, n: 1.0,
    }
    print("| cost | total | kept | damage | met | exact | evaluations |\n|---|---:|---:|---:|---|---|---:|")
    for name, share in kinds.items():
        for scale, label in ((1e-3, "1e-3"), (1e12, "1e12")):
            for joined in (False, True):

                def cost(counts: Sequence[int], share=share, scale=scale, joined=joined) -> float:  # type: ignore[no-untyped-def]
                    each = [share(k, n) for k, n in enumerate(counts)]
                    if joined:  # neighbouring widths multiply, as in convolutions
                        return scale * float(sum(a * b for a, b in pairwise(each)))
                    return scale * float(weights @ each)

                found = spend(widths, curves, cost, 0.5 * cost([0] * 6))
                kept = found.cost / cost([0] * 6)
                what = f"{name}, products" if joined else f"{name}, sum"
                print(
                    f"| {what} | {label} | {kept:.3f} | {found.damage:.4f} | {found.is_met} | {found.is_exact} | {found.evaluations} |"
                )
    print()


def nets_table(folder: Path, sets: int) -> None:
    data = np.load(folder / "digits.npz")
    images = {k: data[k].astype(np.float32) / 255 * 3 - 1 for k in ("Xtr", "Xte")}
    unseen = np.concatenate([images["Xtr"][sets * IMAGES :], images["Xte"]])
    print("| network | target | divergence, mean | top-1, mean | top-1 of each set | MACs kept | seconds |")
    print("|---|---:|---:|---:|---|---:|---:|")
    for path in [folder / f"{n}.onnx" for n in ("vgg", "mobilenetv2", "resnet20") if (folder / f"{n}.onnx").exists()]:
        name = onnx.load(path).graph.input[0].name
        wanted = _log_softmax(ort.InferenceSession(path.read_bytes()).run(None, {name: unseen})[0])
        for target in TARGETS:
            apart, top1, kept = [], [], []
            start = time.perf_counter()
            for k in range(sets):
                with tempfile.TemporaryDirectory() as made:
                    np.savez(Path(made) / "x.npz", **{name: images["Xtr"][k * IMAGES : (k + 1) * IMAGES]})
                    result = onnxprune.prune(path, Budget("macs", target), data=Path(made) / "x.npz", benchmark=False)
                session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
                found = _log_softmax(session.run(None, {name: unseen})[0])
                apart.append(float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean()))
                top1.append(float((found[-len(data["yte"]) :].argmax(axis=1) == data["yte"]).mean()))
                kept.append(_macs_kept(result.report))
            each = " ".join(f"{t:.3f}" for t in top1)
            seconds = (time.perf_counter() - start) / sets
            means = f"{np.mean(apart):.4f} | {np.mean(top1):.4f} | {each} | {np.mean(kept):.4f}"
            print(f"| {path.stem} | {target} | {means} | {seconds:.1f} |", flush=True)


def _log_softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _macs_kept(report: Any) -> float:
    """Of this version, and of 0.1.0, whose report was a dict."""
    before, after = (
        report.data["cost"]["macs"] if hasattr(report, "data") else (report.cost.macs.before, report.cost.macs.after)
    )
    return float(after / before)


if __name__ == "__main__":
    main()
