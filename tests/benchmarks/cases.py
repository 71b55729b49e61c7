"""Every command on a folder of cases: `python -m tests.benchmarks.cases FOLDER` prints a Markdown table of what each ended in.

FOLDER/CASE/MODEL.onnx, with inputs in FOLDER/CASE/data… (the name of the model with `data` for `model`, as a file or a folder). A cell is `ok`, or the exit code
and the message; `crash` where there was a traceback. To compare with another version, put it first in PYTHONPATH.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 600  # seconds of one command
COLUMNS = ("ratio", "macs, data", "verify, data", "verify", "apply", "macs", "sparsify", "finetune", "inspect")


def main() -> None:
    print(f"| case | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for model in sorted(Path(sys.argv[1]).glob("*/*.onnx")):
        found = [model.parent / (model.stem.replace("model", "data") + end) for end in (".npz", "")]
        data = next((str(p) for p in found if p.exists()), None)
        with tempfile.TemporaryDirectory() as place:
            cells = run(str(model), data, place)
        print(f"| {model.parent.name[:2]} {model.stem} | {' | '.join(cells)} |", flush=True)


def run(model: str, data: str | None, place: str) -> list[str]:
    """The cells of one model."""
    given = ["--data", data] if data else []
    plan, small = f"{place}/p.json", f"{place}/o.onnx"
    rounded = ["--round-to", "1"]
    return [
        command(place, "prune", model, "-o", f"{place}/r.onnx", "--ratio", "0.5", *rounded),
        command(place, "prune", model, "-o", small, "--macs", "0.5", *rounded, *given, "--plan", plan) if data else "-",
        command(place, "verify", model, small, "--plan", plan, *given) if data else "-",
        command(place, "verify", model, small, "--plan", plan) if data else "-",
        command(place, "prune", model, "-o", f"{place}/a.onnx", "--apply", plan) if data else "-",
        command(place, "prune", model, "-o", f"{place}/m.onnx", "--macs", "0.5", *rounded),
        command(place, "sparsify", model, "-o", f"{place}/s.onnx", "--sparsity", "0.5", *given),
        command(place, "finetune", small, "--teacher", model, "-o", f"{place}/t.onnx", "--steps", "4", *given)
        if data
        else "-",
        command(place, "inspect", model),
    ]


def command(place: str, *words: str) -> str:
    """How a command ended, in a few words."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune", *words],
            capture_output=True,
            text=True,
            cwd=place,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"over {LIMIT} s"
    noise = " (numpy warning)" if "RuntimeWarning" in done.stderr else ""
    if "Traceback" in done.stderr:
        return f"crash: {done.stderr.strip().splitlines()[-1][:80]}"
    if done.returncode:
        return f"{done.returncode}: {done.stderr.strip().splitlines()[-1][:110] if done.stderr.strip() else ''}{noise}".replace(
            "|", "/"
        )
    kept = next((line.split()[-1] for line in done.stdout.splitlines() if line.startswith("MACs")), "")
    return f"ok {kept}{noise}".strip()


if __name__ == "__main__":
    main()
