"""Torch-Pruning, onnxsim and onnxprune on the same networks, data and MACs, as one table:

    pip install -e ".[peers]"
    python tests/benchmarks/peers.py --nets ../shared/nets --macs 0.7 0.5 0.3

With `--criteria`, methods that are papers instead, re-implemented here: `criteria.py`, which has options of its own.

A folder of networks holds `*.onnx` classifiers with one input [N, 1, H, W] and `digits.npz`: `Xtr`, `ytr`, `Xte`, `yte`, images as
uint8, read as x / 255 * 3 - 1. The first 128 of `Xtr` calibrate, unlabelled except for Taylor; the test images only score.

What makes the comparison fair:
- Every method delivers an ONNX file. One counter (`onnxprune.inspect`) counts its MACs, and ONNX Runtime scores it.
- The peers take a ratio, not a target: each is bisected, for each target alone, to the result that keeps most and not more than the target.
- Torch-Pruning works on what onnx2torch makes of the file; unpruned, it must have the MACs and the top-1 of the original.
- Each tool has its own defaults, which leave any number of channels in the peers and multiples of 8 in onnxprune's convolutions.
  Torch-Pruning is told which layer classifies.
- Nobody fine-tunes. Seconds are those of the one call that gave the result, for onnxprune with its check, without the search for the ratio.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's, whatever is installed
import onnxprune
from onnxprune import BadInputError, Budget, TargetNotReachableError

T = TypeVar("T")
Pruner = Callable[["Net", float], onnx.ModelProto]

CALIBRATION = 128
STEPS = 10  # of a bisection: a ratio to 1 / 1024
THREADS = min(2, os.cpu_count() or 1)
PACKAGES = ("onnxprune", "onnxruntime", "torch", "onnx2torch", "torch-pruning", "onnxsim")


@dataclass(frozen=True)
class Data:
    """images: [N, 1, H, W]; labels: [N]. `file` holds the calibration images alone, named like the networks' input."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    file: Path


@dataclass(frozen=True, eq=False)
class Net:
    name: str
    path: Path
    model: onnx.ModelProto
    macs: int
    top1: float
    data: Data


@dataclass(frozen=True)
class Peer:
    """prune: removes about this ratio of the channels. repair: re-fits the weights of the result."""

    prune: Pruner
    repair: Callable[[Net, onnx.ModelProto], onnx.ModelProto] | None = None


@dataclass(frozen=True)
class Cell:
    """What a method made of a network at a target. status: ok, not reached, not available, failed; note: the reason."""

    net: str
    method: str
    target: float
    kept: float | None = None
    top1: float | None = None
    seconds: float | None = None
    ratio: float | None = None
    status: str = "ok"
    note: str = ""

    def __str__(self) -> str:
        measured = "" if self.top1 is None else f"{self.top1:.3f} ({self.kept:.3f}, {self.seconds:.1f} s)"
        return measured if self.status == "ok" else f"{self.status} {measured}".strip()


def main() -> None:
    if "--criteria" in sys.argv:
        from tests.benchmarks import criteria

        return criteria.main()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, metavar="DIR", help="folder of .onnx networks")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="images and labels; default: digits.npz of that folder"
    )
    parser.add_argument(
        "--macs", type=float, nargs="+", default=[0.7, 0.5, 0.3], metavar="F", help="shares of the MACs to keep"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help=f"only methods with this in their name: {', '.join(METHODS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    given = parser.parse_args()
    chosen = {
        name: method for name, method in METHODS.items() if any(text.lower() in name.lower() for text in given.only)
    }
    paths = sorted(given.nets.glob("*.onnx"))
    if not chosen or not paths:
        parser.error(f"{given.nets} holds no .onnx file" if chosen else "--only leaves no method")
    with tempfile.TemporaryDirectory() as folder:
        data = read_data(given.data or given.nets / "digits.npz", Path(folder) / "calibration.npz")
        nets = [read_net(path, data) for path in paths]
        cells = []
        for net in nets:
            for name, method in chosen.items():
                for target in given.macs:
                    cells.append(measure(net, name, method, target))
                    print(f"{net.name}, {name}, {target}: {cells[-1]}", file=sys.stderr, flush=True)
    print(table(nets, list(chosen), given.macs, cells))
    for note in dict.fromkeys(f"{c.method}: {c.note}" for c in cells if c.note):
        print(f"\n{note}")
    if given.json:
        tops = {net.name: {"macs": net.macs, "top1": net.top1} for net in nets}
        text = {"versions": versions(), "calibration": CALIBRATION, "nets": tops, "cells": [asdict(c) for c in cells]}
        given.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def measure(net: Net, name: str, method: Peer | dict[str, Any], target: float) -> Cell:
    """Prune, count and score. A method that raises gets a cell that says so."""
    cell: dict[str, Any] = {"net": net.name, "method": name, "target": target}
    try:
        found = run_peer(net, method, target) if isinstance(method, Peer) else run_ours(net, method, target)
        status = "ok" if found["kept"] <= target else "not reached"
        return Cell(**cell, **found, status=status)
    except TargetNotReachableError as error:
        return Cell(**cell, status="not reached", note=str(error))
    except BadInputError as error:  # an option that this version does not have
        return Cell(**cell, status="not available", note=str(error))
    except Exception as error:  # whatever a peer raises
        return Cell(**cell, status="failed", note=f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}")


def run_ours(net: Net, options: dict[str, Any], target: float) -> dict[str, Any]:
    options = {name: net.data.file if value is CALIBRATION else value for name, value in options.items()}
    start = time.perf_counter()
    pruned = onnxprune.prune(net.path, Budget("macs", target), **options).model
    seconds = time.perf_counter() - start
    return {"kept": macs(pruned) / net.macs, "top1": top1(pruned, net.data), "seconds": seconds}


def run_peer(net: Net, peer: Peer, target: float) -> dict[str, Any]:
    def attempt(ratio: float) -> tuple[float, tuple[onnx.ModelProto, float, float]]:
        start = time.perf_counter()
        pruned = peer.prune(net, ratio)
        seconds = time.perf_counter() - start
        return macs(pruned) / net.macs, (pruned, seconds, ratio)

    kept, (pruned, seconds, ratio) = closest(attempt, target)
    if peer.repair:
        start = time.perf_counter()
        pruned = peer.repair(net, pruned)
        seconds += time.perf_counter() - start
    return {"kept": kept, "top1": top1(pruned, net.data), "seconds": seconds, "ratio": ratio}


def closest(attempt: Callable[[float], tuple[float, T]], target: float, steps: int = STEPS) -> tuple[float, T]:
    """Bisect the ratio in (0, 1): of all results tried, the one that keeps most and at most `target`, or else the one that keeps least.

    attempt: ratio -> (share kept, result). Where the share does not fall as the ratio grows, a nearer result may be missed.
    """
    low, high, tried = 0.0, 1.0, []
    for _ in range(steps):
        ratio = (low + high) / 2
        tried.append(attempt(ratio))
        low, high = (low, ratio) if tried[-1][0] <= target else (ratio, high)
    return max(tried, key=lambda result: (True, result[0]) if result[0] <= target else (False, -result[0]))


# ---------------------------------------------------------------- one counter, one score


def macs(model: onnx.ModelProto) -> int:
    """Of one image."""
    value = model.graph.input[0]
    shape = (1, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]))
    return int(onnxprune.inspect(model, input_shapes={value.name: shape})["macs"])


def top1(model: onnx.ModelProto, data: Data) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: data.test_images})[0]
    return float((logits.argmax(axis=1) == data.test_labels).mean())


def read_data(path: Path, calibration: Path) -> Data:
    with np.load(path) as file:
        images, test_images = (file[key].astype(np.float32) / 255 * 3 - 1 for key in ("Xtr", "Xte"))
        labels, test_labels = (file[key].astype(np.int64) for key in ("ytr", "yte"))
    np.savez(calibration, input=images[:CALIBRATION])
    return Data(images[:CALIBRATION], labels[:CALIBRATION], test_images, test_labels, calibration)


def read_net(path: Path, data: Data) -> Net:
    model = onnx.load(path)
    return Net(path.stem, path, model, macs(model), top1(model, data), data)


# ---------------------------------------------------------------- the peers


@contextmanager
def peers_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SystemExit(f'{error.name} is not installed; the peers are an extra: pip install -e ".[peers]"') from None


def torch_pruning(importance: str, is_global: bool) -> Pruner:
    """importance: a class of `torch_pruning.importance`, with its defaults (L2 for magnitude)."""

    def prune(net: Net, ratio: float) -> onnx.ModelProto:
        model = copy.deepcopy(torch_model(net))
        with peers_extra():
            import torch
            import torch_pruning

        if importance == "GroupTaylorImportance":
            images, labels = torch.from_numpy(net.data.images), torch.from_numpy(net.data.labels)
            torch.nn.functional.cross_entropy(model(images), labels).backward()
        torch_pruning.pruner.BasePruner(
            model,
            torch.from_numpy(net.data.images[:1]),
            importance=getattr(torch_pruning.importance, importance)(),
            global_pruning=is_global,
            pruning_ratio=ratio,
            ignored_layers=[[m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]],
        ).step()
        return exported(model, net)

    return prune


@cache
def torch_model(net: Net) -> Any:
    """The network as a torch module, proved to be the same one."""
    with peers_extra():
        import torch

        try:
            import torchvision
        except (
            RuntimeError
        ):  # built for another torch; onnx2torch imports it, but classifiers need none of its operators
            for name in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            import torchvision  # noqa: F401
        import onnx2torch
    torch.set_num_threads(THREADS)
    model = onnx2torch.convert(net.model).eval()
    back = exported(model, net)
    if (macs(back), top1(back, net.data)) != (net.macs, net.top1):
        raise RuntimeError(f"onnx2torch makes another network of it: {macs(back)} MACs, top-1 {top1(back, net.data)}")
    return model


def exported(model: Any, net: Net) -> onnx.ModelProto:
    import torch

    file, graph = io.BytesIO(), net.model.graph
    names = [[value.name for value in values] for values in (graph.input, graph.output)]
    axes = {name: {0: "batch"} for name in (*names[0], *names[1])}
    example = torch.from_numpy(net.data.images[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript calls itself old
        torch.onnx.export(
            model, (example,), file, dynamo=False, input_names=names[0], output_names=names[1], dynamic_axes=axes
        )
    return onnx.load_from_string(file.getvalue())


def onnxsim_l2(is_global: bool) -> Pruner:
    def prune(net: Net, ratio: float) -> onnx.ModelProto:
        with peers_extra():
            import onnxsim
        return onnxsim.apply_structured_pruning(net.model, sparsity=ratio, global_sparsity=is_global)

    return prune


def onnxsim_wanda(net: Net, ratio: float) -> onnx.ModelProto:
    """Weights times activations."""
    with peers_extra():
        import onnxsim
    return onnxsim.apply_structured_wanda_pruning(net.model, feeds(net), sparsity=ratio)


def onnxsim_refit(net: Net, pruned: onnx.ModelProto) -> onnx.ModelProto:
    """Least squares on the original's activations; of these networks, only the Gemms take part."""
    with peers_extra():
        import onnxsim
    return onnxsim.apply_pruning_finetune(net.model, pruned, feeds(net))


def feeds(net: Net) -> list[dict[str, NDArray[np.float32]]]:
    return [{net.model.graph.input[0].name: net.data.images}]


# ---------------------------------------------------------------- the table


METHODS: dict[str, Peer | dict[str, Any]] = {
    "Torch-Pruning L2, uniform": Peer(torch_pruning("GroupMagnitudeImportance", is_global=False)),
    "Torch-Pruning L2, global": Peer(torch_pruning("GroupMagnitudeImportance", is_global=True)),
    "Torch-Pruning Taylor, global (labels and gradients)": Peer(torch_pruning("GroupTaylorImportance", is_global=True)),
    "onnxsim L2": Peer(onnxsim_l2(is_global=False)),
    "onnxsim L2, global": Peer(onnxsim_l2(is_global=True)),
    "onnxsim Wanda and refit (inputs)": Peer(onnxsim_wanda, onnxsim_refit),
    "onnxprune weights only": {"importance": "l2", "recover": "none"},
    "onnxprune no data": {},
    "onnxprune (inputs)": {"data": CALIBRATION},
}


def table(nets: list[Net], methods: list[str], targets: list[float], cells: list[Cell]) -> str:
    """Markdown: one line per network and method, one column per target."""
    where = {(c.net, c.method, c.target): str(c) for c in cells}
    lines = [
        f"| network (top-1) | method | {' | '.join(f'MACs {t:g}' for t in targets)} |",
        f"|---|---|{'---:|' * len(targets)}",
    ]
    for net in nets:
        for i, method in enumerate(methods):
            first = f"{net.name} ({net.top1:.3f})" if i == 0 else ""
            lines.append(f"| {first} | {method} | {' | '.join(where[net.name, method, t] for t in targets)} |")
    lines += [
        "",
        f"Top-1 (MACs kept, seconds); {', '.join(f'{name} {version}' for name, version in versions().items())}.",
    ]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    main()
