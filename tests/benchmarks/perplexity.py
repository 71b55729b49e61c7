"""Perplexity of an exported language model before and after `prune`, by the protocol of the published tables (wikitext, windows of 2,048).

    python tests/benchmarks/perplexity.py llama.onnx --text wiki.test.raw --tokenizer tokenizer.json --calibration wiki.train.raw --macs 0.8

The text is made ids as a whole and cut into windows of --sequence ids that do not overlap; what is left over at the end is not used. In each
window every id but the first is predicted from those before it; perplexity is e to the mean of all these negative log-likelihoods (GPTQ, Frantar
et al., 2023, and those who compare with it). Calibrated is on --samples windows of --calibration at random places, drawn by --seed.
A text is a file of plain text, with --tokenizer (a `tokenizer.json`, needs the package tokenizers), or ids in a `.npy` file.

The model takes `input_ids` [N, T], gives logits [N, T, V] as its first output of rank 3, and may take `attention_mask` (ones) and `position_ids` (0, 1, …); caches have
to be left out of the export. The table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from onnxprune import Budget, OnnxPruneError  # noqa: E402
from onnxprune.model.loaded import Model  # noqa: E402
from onnxprune.runtime import VERSION, Session, graph_inputs  # noqa: E402

IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
Ints = npt.NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--text", type=Path, required=True, help="what perplexity is taken on: plain text, or ids in a .npy file"
    )
    parser.add_argument("--calibration", type=Path, required=True, help="the same, to calibrate on")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, for plain text")
    parser.add_argument("--sequence", type=int, default=2048, help="ids per window")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.8], help="shares of the MACs that may be left")
    parser.add_argument("--samples", type=int, default=128, help="windows to calibrate on")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    how = parser.parse_args(arguments)
    if how.sequence < 2:
        parser.error("--sequence: a window needs two ids at least, one to predict the other from")
    original = onnx.load(how.model)
    names = inputs_of(original)
    windows = cut(ids_of(how.text, how.tokenizer), how.sequence, how.text)
    source = ids_of(how.calibration, how.tokenizer)
    cut(source, how.sequence, how.calibration)
    print(
        f"onnxprune {onnxprune.__version__}, onnxruntime {VERSION}, {len(windows):,} windows of {how.sequence:,} ids, "
        f"{how.samples} to calibrate on.\n"
    )
    print("| MACs | parameters | perplexity |\n|---:|---:|---:|")
    print(f"| 1 | 1 | {perplexity(original, names, windows, how.threads):.4f} |", flush=True)
    starts = np.random.default_rng(how.seed).integers(0, len(source) - how.sequence + 1, how.samples)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "calibration.npz"
        np.savez(data, **fed(names, np.stack([source[s : s + how.sequence] for s in starts])))
        for share in how.macs:
            options: dict[str, Any] = {"data": data, "samples": how.samples, "seed": how.seed}
            try:
                result = onnxprune.prune(how.model, Budget("macs", share), benchmark=False, **options)
            except OnnxPruneError as error:
                print(f"| {share} | not reached | {error} |", flush=True)
                continue
            kept = [f"{pair.after / pair.before:.3f}" for pair in (result.plan.macs, result.plan.params)]
            found = perplexity(result.model, names, windows, how.threads)
            print(f"| {kept[0]} | {kept[1]} | {found:.4f} |", flush=True)


def inputs_of(model: onnx.ModelProto) -> list[str]:
    """Names of the inputs. Exits where there are others than this protocol knows."""
    names = [v.name for v in graph_inputs(model)]
    if IDS not in names or set(names) - {IDS, MASK, POSITIONS}:
        others = ", ".join(n for n in names if n not in (IDS, MASK, POSITIONS)) or "none of these"
        sys.exit(
            f"error: the model must take {IDS}, and may take {MASK} and {POSITIONS}; it takes {others}. Export it without caches"
        )
    return names


def ids_of(path: Path, tokenizer: Path | None) -> Ints:
    """The ids of a text, in order. Exits with what is missing."""
    if not path.is_file():
        sys.exit(f"error: {path} does not exist")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False).astype(np.int64).ravel()
    if tokenizer is None:
        sys.exit(f"error: {path} is plain text; give --tokenizer, or ids in a .npy file")
    try:
        module: Any = importlib.import_module("tokenizers")
    except ImportError:
        sys.exit("error: --tokenizer needs the package tokenizers: pip install tokenizers")
    found = module.Tokenizer.from_file(str(tokenizer)).encode(path.read_text(encoding="utf-8"))
    return np.array(found.ids, np.int64)


def cut(ids: Ints, length: int, path: Path) -> Ints:
    """`[windows, length]`. Exits where there is not one."""
    count = len(ids) // length
    if not count:
        sys.exit(f"error: {path} has {len(ids):,} ids, fewer than the {length:,} of one window (--sequence)")
    return ids[: count * length].reshape(count, length)


def fed(names: Sequence[str], ids: Ints) -> dict[str, Ints]:
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    known = {IDS: ids, MASK: np.ones_like(ids), POSITIONS: positions}
    return {name: np.ascontiguousarray(known[name]) for name in names}


def perplexity(model: onnx.ModelProto, names: Sequence[str], windows: Ints, threads: int) -> float:
    """e to the mean negative log-likelihood of every id but the first of each window, window by window."""
    session = Session(Model(model), optimized=True, threads=threads)
    total, count = 0.0, 0
    for window in windows:
        values = session.run(fed(names, window[None]))
        logits = next((v for v in values if v.ndim == 3), None)
        if logits is None:
            sys.exit("error: the model has no output [N, T, V] of logits")
        scores = logits[0, :-1].astype(np.float64)
        top = scores.max(axis=1)
        spread = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        total += float((spread - scores[np.arange(len(scores)), window[1:]]).sum())
        count += len(scores)
    return float(np.exp(total / count))


if __name__ == "__main__":
    main()
