"""How good a model is: the evaluation of each model in this folder, written once.

    python models/scores.py                                  # every model, unpruned
    python models/scores.py magika_standard_v3_3 --model pruned.onnx

`score` measures a model; `calibration` gives unlabelled inputs that share nothing with the
evaluation. Everything is drawn from fixed seeds and runs on one CPU thread, so a score can be
repeated exactly on one machine. The real models must have been fetched: python models/fetch.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: import `models` from the folder above, not from here
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from models.fetch import HERE, MANIFEST, REAL
from models.tasks import detection, digits, filetype, music, objects, retrieval, speech, text
from models.tasks.base import ORT_ERRORS, Feed, ScoreError, Task, first_line

TASKS: dict[str, Task] = {
    "digits": digits.TASK,
    "digits_vit": digits.TASK,
    "ch_PP-OCRv4_rec": text.recognition(text.FIRST),
    "ch_PP-OCRv4_rec@second": text.recognition(text.SECOND),
    "ch_ppocr_mobile_v2.0_cls": text.orientation(text.FIRST),
    "ch_ppocr_mobile_v2.0_cls@second": text.orientation(text.SECOND),
    "magika_standard_v3_3": filetype.TASK,
    "silero_vad_16k_op15": speech.TASK,
    "nudenet_320n": detection.TASK,
    "basic_pitch_nmp": music.TASK,
    "efficientnet_lite0": objects.TASK,
    "all_minilm_l6_v2": retrieval.TASK,
}


def score(name: str, model_path: Path | str, reference_path: Path | str | None = None) -> float:
    """The score in [0, 1] of the model at `model_path`, at the task of the model `name`.

    `reference_path` is the unpruned model that measures of agreement compare with; by default the
    fetched one. Raises `ScoreError`.
    """
    reference = Path(reference_path) if reference_path else unpruned_path(name)
    try:
        return find_task(name).evaluate(Path(model_path), reference)
    except ORT_ERRORS as error:
        raise ScoreError(f"ONNX Runtime cannot run '{model_path}': {first_line(error)}") from None


def calibration(name: str, n: int, seed: int = 0, model_path: Path | str | None = None) -> list[Feed]:
    """`n` feeds, from input names to arrays, for the model `name`, without labels.

    `model_path` is the unpruned model, by default the fetched one; only `silero_vad_16k_op15` runs
    it, to reach the states that its chunks come with. Raises `ScoreError`.
    """
    unpruned = Path(model_path) if model_path else unpruned_path(name)
    return find_task(name).calibration(n, seed, unpruned)


def find_task(name: str) -> Task:
    """The task of a model, or another of the same model's: `NAME@second` draws what is read in another way."""
    if name not in TASKS:
        raise ScoreError(f"No model is named '{name}'; there are {', '.join(TASKS)}.")
    return TASKS[name]


def unpruned_path(name: str) -> Path:
    """Where the unpruned model lies: beside this file, or where `fetch` puts it. What follows an `@` names no other model."""
    name = name.partition("@")[0]
    return REAL / f"{name}.onnx" if name in MANIFEST else HERE / f"{name}.onnx"


def main() -> None:
    """Print a table of scores."""
    parser = argparse.ArgumentParser(description="Score models on their tasks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TASKS))
    parser.add_argument("--model", type=Path, help="score this file instead of the unpruned model")
    parser.add_argument("--reference", type=Path, help="the unpruned model (default: fetched)")
    args = parser.parse_args()
    names = args.names or list(TASKS)
    if (args.model or args.reference) and len(names) != 1:
        parser.error("--model and --reference go with exactly one NAME")
    try:
        for name in names:
            value = score(name, args.model or unpruned_path(name), args.reference)
            print(f"{name:<31} {find_task(name).metric:<20} {value:.4f}", flush=True)
    except ScoreError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
