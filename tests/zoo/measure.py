"""Record what pruning leaves of the zoo: python -m tests.zoo.measure [NAME...] writes expected.json.

Without names it measures every graph of this folder, of shared/zoo where that lies beside the checkout, and the real
models (which it fetches). Run it after a change that is meant to move the numbers, and read the difference: a share that
grows or a group that is lost needs a reason.
"""

from __future__ import annotations

import argparse
import json
import time

import onnx
from onnx import ModelProto

from models import fetch, scores
from tests.zoo import HERE, SHARED, files, load_graph
from tests.zoo.checks import Feeds, Measured, measure

EXPECTED = HERE / "expected.json"
MODES = {"exact": False, "inexact": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    for name in parser.parse_args().names or (files(SHARED) | files() | fetch.MANIFEST):
        for mode, inexact in MODES.items():
            start = time.perf_counter()
            try:
                model, examples = subject(name)
                found = measure(model, inexact, examples)
            except Exception as problem:  # go on: the others are worth knowing
                print(f"{name:42} {mode:8} {type(problem).__name__}: {problem}", flush=True)
                continue
            record(name, mode, found)
            took = time.perf_counter() - start
            line = f"{found.groups:4} groups, MACs {found.macs:.3f}, error {found.error:.1e}, {took:.1f} s"
            print(f"{name:42} {mode:8} {line}", flush=True)


def subject(name: str) -> tuple[ModelProto, list[Feeds]]:
    """A model, and inputs for it where random ones will not do. Raises `FetchError` or `ScoreError` for real models."""
    if name in fetch.MANIFEST:
        path = fetch.fetch(name)
        return onnx.load(path), scores.calibration(name, 2, model_path=path)
    return load_graph((files(SHARED) | files())[name]), []


def record(name: str, mode: str, found: Measured) -> None:
    """One line per graph, in order of names."""
    table = expected()
    table.setdefault(name, {})[mode] = {"groups": found.groups, "macs": found.macs}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(table[key], sort_keys=True)}" for key in sorted(table))
    EXPECTED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def expected() -> dict[str, dict[str, dict[str, float]]]:
    """Graph -> mode -> groups that can lose units, and the share of the MACs that is left at a ratio of one half."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    if EXPECTED.exists():
        table = json.loads(EXPECTED.read_text(encoding="utf-8"))
    return table


if __name__ == "__main__":
    main()
