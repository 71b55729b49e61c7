"""How much sparsity do weights bear? Top-1 by criterion: python tests/benchmarks/sparsity.py --nets ../shared/nets

Shares of zeros and the 2:4 pattern x magnitude, Wanda, OBS with repair; 128 unlabelled inputs to calibrate. Every cell is one run of
`onnxprune.sparsify`; the table goes to stdout as Markdown (`--out FILE` writes it). The test images only score.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402

INPUTS = 128
CRITERIA = ("magnitude", "wanda", "obs")
SHARES = (0.5, 0.7, 0.8, 0.9)
TARGETS: list[tuple[str, dict[str, Any]]] = [
    *((f"{s:.0%} of each layer", {"sparsity": s}) for s in SHARES),
    *((f"{s:.0%} of all layers", {"sparsity": s, "scope": "global"}) for s in SHARES),
    ("2:4", {"pattern": "2:4"}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nets", type=Path, required=True, help="folder with classifiers and digits.npz")
    parser.add_argument("--only", nargs="*", default=["vgg", "mobilenetv2"], help="names of nets")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = np.load(arguments.nets / "digits.npz")
    images = {k: data[k].astype(np.float32) / 255 * 3 - 1 for k in ("Xtr", "Xte")}
    images = {k: v[:, None] if v.ndim == 3 else v for k, v in images.items()}

    def top1(model: onnx.ModelProto) -> float:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: images["Xte"]})[0].argmax(axis=1)
        return float((found == data["yte"]).mean())

    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration.npz"
        np.savez(calibration, input=images["Xtr"][:INPUTS])
        lines = table([arguments.nets / f"{n}.onnx" for n in arguments.only], calibration, top1)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(nets: list[Path], calibration: Path, top1: Callable[[onnx.ModelProto], float]) -> list[str]:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(
        f"Top-1 with weights set to zero (seconds), no training; {INPUTS} unlabelled inputs for wanda and obs. "
        f"onnxprune {onnxprune.__version__}, onnxruntime {ort.__version__}."
    )
    say("")
    heads = [f"{path.stem} ({top1(onnx.load(path)):.3f}), {c}" for path in nets for c in CRITERIA]
    say(f"| zeros | {' | '.join(heads)} |")
    say("|---|" + "---:|" * len(heads))
    for name, target in TARGETS:
        row = []
        for path in nets:
            for criterion in CRITERIA:
                begin = time.perf_counter()
                result = onnxprune.sparsify(path, criterion=criterion, data=calibration, benchmark=False, **target)
                row.append(f"{top1(result.model):.3f} ({time.perf_counter() - begin:.0f} s)")
        say(f"| {name} | {' | '.join(row)} |")
    return lines


if __name__ == "__main__":
    main()
