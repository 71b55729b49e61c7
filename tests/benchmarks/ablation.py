"""What is each part worth? Top-1 after pruning, with parts taken away: python tests/benchmarks/ablation.py --nets ../shared/nets

Selection (obs, l2, random) x repair (lsq, bias, none) x allocation (measured damage, one ratio everywhere) on 128 calibration
inputs, then the default on 8, 32, 128, 512 inputs and on none; for the transformer in `models/` with and without mixing. Every cell is one run of `onnxprune.prune` at the same MACs; the table goes
to stdout as Markdown (`--out FILE` writes it). The test images only score.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from models.scores import score  # noqa: E402
from onnxprune import Budget, OnnxPruneError  # noqa: E402

SIZES = (8, 32, 128, 512)
STEPS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nets", type=Path, required=True, help="folder with classifiers and digits.npz")
    parser.add_argument("--only", nargs="*", default=["vgg", "mobilenetv2"], help="names of nets")
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = np.load(arguments.nets / "digits.npz")
    images = {k: data[k].astype(np.float32) / 255 * 3 - 1 for k in ("Xtr", "Xte")}
    images = {k: v[:, None] if v.ndim == 3 else v for k, v in images.items()}
    with tempfile.TemporaryDirectory() as folder:
        lines = table(arguments, images, data["yte"], Path(folder))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(arguments: argparse.Namespace, images: dict[str, Any], labels: Any, folder: Path) -> list[str]:
    nets = [arguments.nets / f"{n}.onnx" for n in arguments.only]
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    def top1(model: onnx.ModelProto) -> float:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: images["Xte"]})[0].argmax(axis=1)
        return float((found == labels).mean())

    heads = [f"{p.stem} ({top1(onnx.load(p)):.3f})" for p in nets]
    say(
        f"Top-1 (MACs kept, seconds) at `--macs {arguments.macs}`, onnxprune {onnxprune.__version__}, onnxruntime {ort.__version__}."
    )
    say("")
    say("| selection | repair | allocation | inputs | " + " | ".join(heads) + " |")
    say("|---|---|---|---:|" + "---:|" * len(nets))
    files = {n: folder / f"{n}.npz" for n in SIZES}
    for number, file in files.items():
        np.savez(file, input=images["Xtr"][:number])
    cells = [
        (selection, repair, allocation, 128)
        for selection, repair, allocation in itertools.product(
            ("obs", "l2", "random"), ("lsq", "bias", "none"), ("measured", "one ratio")
        )
    ]
    cells += [("obs", "lsq", "measured", n) for n in (8, 32, 512, 0)]
    for selection, repair, allocation, number in cells:
        options: dict[str, Any] = {
            "importance": selection,
            "recover": repair,
            "data": files.get(number),
            "benchmark": False,
        }
        row = []
        for path in nets:
            begin = time.perf_counter()
            try:
                result = prune(path, arguments.macs, allocation, options)
            except OnnxPruneError as error:
                print(f"{path.stem}: {error}", file=sys.stderr)
                row.append("not reached")
                continue
            seconds = time.perf_counter() - begin
            before, after = result.report.cost.macs
            row.append(f"{top1(result.model):.3f} ({after / before:.3f}, {seconds:.0f} s)")
        say(f"| {selection} | {repair} | {allocation} | {number or 'none'} | " + " | ".join(row) + " |")
    return [*lines, "", *mixing()]


def mixing() -> list[str]:
    """Top-1 of the small transformer with units as they are and mixed into principal directions."""
    model, data = ROOT / "models" / "digits_vit.onnx", ROOT / "models" / "digits_calib.npz"
    lines = [
        f"`digits_vit` ({score('digits_vit', model):.3f}), 128 inputs: top-1 and divergence on held-out samples.",
        "",
        "| MACs | as they are | mixed |",
        "|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for macs in (0.7, 0.5, 0.3, 0.2, 0.15):
            cells = []
            for mix in (False, True):
                result = onnxprune.prune(model, Budget("macs", macs), data=data, mix=mix, benchmark=False)
                result.save(Path(folder) / "pruned.onnx")
                damage = result.report.repair.damage[1]
                cells.append(f"{score('digits_vit', Path(folder) / 'pruned.onnx'):.3f}, {damage:.2g}")
            lines.append(f"| {macs} | {' | '.join(cells)} |")
    print("\n".join(lines), flush=True)
    return lines


def prune(path: Path, macs: float, allocation: str, options: dict[str, Any]) -> onnxprune.PruneResult:
    """At most so many MACs: as a target, or by the smallest single ratio that does it."""
    if allocation == "measured":
        return onnxprune.prune(path, Budget("macs", macs), **options)
    low, high = 0.0, 0.95
    plain = options | {"recover": "none", "importance": "l2", "check": False}
    for _ in range(STEPS):  # what a ratio costs does not depend on which units go
        middle = (low + high) / 2
        before, after = onnxprune.prune(path, Budget("ratio", middle), **plain).report.cost.macs
        low, high = (middle, high) if after > macs * before else (low, middle)
    return onnxprune.prune(path, Budget("ratio", high), **options)


if __name__ == "__main__":
    main()
