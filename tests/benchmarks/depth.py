"""Channels, layers, or both? At equal MACs: python tests/benchmarks/depth.py --digits ../shared/nets/digits.npz NET.onnx …

Every net is pruned three times to the same share of its MACs on 128 unlabelled training images: channels only, layers only
(`--depth only`), both (`--depth auto`). Top-1 is on the 1,000 test images, which nothing else sees; latency is of one image on one
thread, of the original and the three results in turn, so that drift of the machine hits all of them alike; its spread is given. The table
goes to stdout as Markdown (`--out FILE` writes it).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from onnxprune import Budget, OnnxPruneError  # noqa: E402
from onnxprune.model.loaded import Model  # noqa: E402
from onnxprune.runtime import VERSION, Session, latency  # noqa: E402

WAYS = {"channels": "off", "layers": "only", "both": "auto"}
IMAGES = 128
REPEATS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("nets", type=Path, nargs="+", help="classifiers of the digits")
    parser.add_argument("--digits", type=Path, required=True, help="digits.npz with Xtr, Xte, yte")
    parser.add_argument("--macs", type=float, nargs="*", default=[0.5, 0.3])
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = np.load(arguments.digits)
    images = {k: data[k].astype(np.float32) / 255 * 3 - 1 for k in ("Xtr", "Xte")}
    images = {k: v[:, None] if v.ndim == 3 else v for k, v in images.items()}
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(f"onnxprune {onnxprune.__version__}, onnxruntime {VERSION}, {IMAGES} unlabelled images.")
    say("")
    say(
        "| net (top-1) | target | way | MACs kept | top-1 | ms (quartiles) | faster than the original | nodes gone | seconds |"
    )
    say("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for path in arguments.nets:
        for share in arguments.macs:
            for line in rows(path, share, arguments.ways, images, data["yte"]):
                say(line)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(path: Path, share: float, ways: list[str], images: dict[str, Any], labels: Any) -> list[str]:
    """One row per way."""
    original = onnx.load(path)
    name = original.graph.input[0].name
    models, notes = {"original": original}, {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        np.savez(file, **{name: images["Xtr"][:IMAGES]})
        for way, depth in ((w, WAYS[w]) for w in ways):
            begin = time.perf_counter()
            try:
                result = onnxprune.prune(path, Budget("macs", share), data=file, depth=depth, benchmark=False)
            except OnnxPruneError as error:
                print(f"{path.stem} {share} {way}: {error}", file=sys.stderr)
                continue
            models[way] = result.model
            kept = result.plan.macs.after / result.plan.macs.before
            notes[way] = (kept, len(result.plan.nodes_removed), time.perf_counter() - begin)
    sessions = {way: Session(Model(m), optimized=True, threads=1) for way, m in models.items()}

    def top1(session: Session) -> float:
        found = session.run({name: images["Xte"]})[0].argmax(axis=1)
        return float((found == labels).mean())

    times = dict(
        zip(sessions, latency(list(sessions.values()), {name: images["Xte"][:1]}, REPEATS, 20, 60), strict=True)
    )
    head = f"{path.stem} ({top1(sessions['original']):.3f})"
    before = median(times["original"])
    found = []
    for way in ways:
        if way not in models:
            found.append(f"| {head} | {share} | {way} | not reached | | | | | |")
            continue
        kept, gone, seconds = notes[way]
        low, middle, high = quantiles(times[way], n=4)
        found.append(
            f"| {head} | {share} | {way} | {kept:.3f} | {top1(sessions[way]):.3f} | {middle:.3f} ({low:.3f} – {high:.3f}) | "
            f"{before / middle:.2f}x | {gone} | {seconds:.0f} |"
        )
    return found


if __name__ == "__main__":
    main()
