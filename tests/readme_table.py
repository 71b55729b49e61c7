"""Write the measured parts of the README and of docs/: python -m tests.readme_table

The table of models before and after, with scores (all of it in docs/benchmarks.md, a few rows in the README), and the output in
docs/prune.md. Fetches the real models; takes minutes, and its milliseconds want a machine that does nothing else.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import onnxprune
from models import fetch, scores
from onnxprune import Budget

ROOT = Path(__file__).resolve().parent.parent
ROWS: list[tuple[str, str, float, bool]] = [
    ("digits", "small residual CNN", 0.5, True),
    ("digits", "", 0.7, False),
    ("digits_vit", "small transformer", 0.3, True),
    ("ch_ppocr_mobile_v2.0_cls", "MobileNetV3, text orientation", 0.5, True),
    ("ch_PP-OCRv4_rec", "text recognition, attention", 0.5, True),
    ("magika_standard_v3_3", "file types, tf2onnx export", 0.5, True),
    ("nudenet_320n", "YOLOv8n detector", 0.5, True),
    ("basic_pitch_nmp", "music transcription, tf2onnx export", 0.5, True),
    ("silero_vad_16k_op15", "voice activity, LSTM inside an If", 0.5, True),
]
IN_README = (0, 2, 4, 6, 8)  # of ROWS
TABLE = r"(?<=\|---\|---\|---:\|---:\|---:\|---:\|---:\|\n)(\|.*\n)+"
OUTPUT = r"(?s)(?<=```text\n)found .*?(?=```)"


def main() -> None:
    rows = [row(*what) + "\n" for what in ROWS]
    write("docs/benchmarks.md", TABLE, "".join(rows))
    write("README.md", TABLE, "".join(rows[k] for k in IN_README))
    write("docs/prune.md", OUTPUT, first_output())


def write(page: str, pattern: str, new: str) -> None:
    """Replace the first match of `pattern` in a page."""
    text, count = re.subn(pattern, lambda _: new, (ROOT / page).read_text(encoding="utf-8"), count=1)
    assert count == 1, f"{page} has lost its table or its output"
    (ROOT / page).write_text(text, encoding="utf-8")


def row(name: str, about: str, macs: float, has_data: bool) -> str:
    """One line of the table."""
    path = fetch.fetch(name) if name in fetch.MANIFEST else scores.unpruned_path(name)
    with tempfile.TemporaryDirectory() as folder:
        data = inputs(name, Path(folder) / "inputs") if has_data else None
        result = onnxprune.prune(path, Budget("macs", macs), data=data)
        result.save(Path(folder) / "pruned.onnx")
        try:
            after = f"{scores.score(name, Path(folder) / 'pruned.onnx', path):.3f}"
        except scores.ScoreError as problem:
            after = "does not run"
            print(f"{name}: {problem}", file=sys.stderr)
    before = f"{scores.score(name, path, path):.3f}"
    found = result.report
    pairs = [[short(n) for n in pair] for pair in (found.cost.macs, found.cost.params, found.cost.bytes)]
    times = [f"{ms:.3g}" for ms in (found.latency_ms.before, found.latency_ms.after)]
    cells = [f"`{name}`: {about}" if about else "the same", f"`--macs {macs}{' --data …' if has_data else ''}`"]
    cells += [f"{a} → {b}" for a, b in (*pairs, times, (before, after))]
    line = f"| {' | '.join(cells)} |"
    print(line, f"{sum(found.seconds.values()):.0f} s", flush=True)
    return line


def inputs(name: str, folder: Path) -> Path:
    """64 unlabelled inputs as a folder of .npz files; for the model in the repository the file beside it."""
    if name not in fetch.MANIFEST:
        return scores.HERE / "digits_calib.npz"
    folder.mkdir()
    for k, feed in enumerate(scores.calibration(name, 64)):
        np.savez(folder / f"{k:03d}.npz", **feed)
    return folder


def short(number: int) -> str:
    """Three digits and a unit: 6.10 M."""
    for unit, size in ((" M", 1e6), (" k", 1e3)):
        if number >= size:
            value = number / size
            return f"{value:,.{max(0, 3 - len(str(int(value))))}f}{unit}"
    return str(number)


def first_output() -> str:
    """What the first command of docs/prune.md prints."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(scores.unpruned_path("digits"))
        data = str(scores.HERE / "digits_calib.npz")
        options = ["-o", f"{folder}/small.onnx", "--macs", "0.5", "--data", data]
        command = [sys.executable, "-m", "onnxprune", "prune", source, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return re.sub(r"(?m)^(wrote\s+).*$", r"\1small.onnx", done.stdout)


if __name__ == "__main__":
    main()
