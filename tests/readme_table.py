"""Write the measured parts of the README: python -m tests.readme_table

The table of models before and after, with scores, and the output of the first command. Fetches the real models; takes minutes,
and its milliseconds want a machine that does nothing else.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxprune
from models import fetch, scores
from onnxprune import Budget

README = Path(__file__).resolve().parent.parent / "README.md"
ROWS: list[tuple[str, str, float, dict[str, object]]] = [
    ("digits", "small residual CNN", 0.9, {}),
    ("digits", "", 0.5, {}),
    ("ch_ppocr_mobile_v2.0_cls", "MobileNetV3, text orientation", 0.5, {"input_shapes": {"x": (1, 3, 48, 192)}}),
    ("ch_PP-OCRv4_rec", "text recognition, attention", 0.5, {"input_shapes": {"x": (1, 3, 48, 320)}}),
    ("magika_standard_v3_3", "file types, tf2onnx export", 0.5, {}),
    ("nudenet_320n", "YOLOv8n detector", 0.5, {"input_shapes": {"images": (1, 3, 320, 320)}}),
    ("basic_pitch_nmp", "music transcription, tf2onnx export", 0.5, {"round_to": 1}),
    ("silero_vad_16k_op15", "voice activity, LSTM inside an If", 0.7, {"round_to": 1}),
]


def main() -> None:
    text = README.read_text(encoding="utf-8")
    rows = "".join(row(*what) + "\n" for what in ROWS)
    text, tables = re.subn(r"(?<=\|---\|---\|---:\|---:\|---:\|---:\|---:\|\n)(\|.*\n)+", lambda _: rows, text, count=1)
    shown = first_output()
    text, outputs = re.subn(r"(?<=```text\n)found .*?(?=```)", lambda _: shown, text, count=1, flags=re.DOTALL)
    assert tables == outputs == 1, "the README has lost its table or its output"
    README.write_text(text, encoding="utf-8")


def row(name: str, about: str, macs: float, options: dict[str, object]) -> str:
    """One line of the table."""
    path = fetch.fetch(name) if name in fetch.MANIFEST else scores.unpruned_path(name)
    result = onnxprune.prune(path, Budget("macs", macs), **options)
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "pruned.onnx")
        try:
            after = f"{scores.score(name, Path(folder) / 'pruned.onnx', path):.3f}"
        except scores.ScoreError as problem:
            after = "does not run"
            print(f"{name}: {problem}", file=sys.stderr)
    before = f"{scores.score(name, path, path):.3f}"
    data = result.report.data
    pairs = [[short(n) for n in data["cost"][what]] for what in ("macs", "params", "bytes")]
    times = [f"{data['latency_ms'][when]:.3g}" for when in ("before", "after")]
    command = f"`--macs {macs}{' --round-to 1' if options.get('round_to') == 1 else ''}`"
    cells = [f"`{name}`: {about}" if about else "the same", command]
    cells += [f"{a} → {b}" for a, b in (*pairs, times, (before, after))]
    line = f"| {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def short(number: int) -> str:
    """Three digits and a unit: 6.10 M."""
    for unit, size in ((" M", 1e6), (" k", 1e3)):
        if number >= size:
            value = number / size
            return f"{value:,.{max(0, 3 - len(str(int(value))))}f}{unit}"
    return str(number)


def first_output() -> str:
    """What the first command of the README's section prints."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(scores.unpruned_path("digits"))
        command = [sys.executable, "-m", "onnxprune", "prune", source, "-o", f"{folder}/small.onnx", "--macs", "0.5"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=README.parent)
    return re.sub(r"(?m)^(wrote\s+).*$", r"\1small.onnx", done.stdout)


if __name__ == "__main__":
    main()
