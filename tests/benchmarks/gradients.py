"""Three ways to get gradients of an ONNX graph's weights, on the graphs of the zoo: coverage, correctness and speed.

    python tests/benchmarks/gradients.py [--only TEXT] [--markdown FILE]

- onnxprune: this package's evaluation of the graph in PyTorch (`onnxprune/training`).
- onnx2torch: converts the graph to a torch.fx module (`pip install onnx2torch`).
- onnx-ad: derives an ONNX graph that computes the gradient, run by ONNX Runtime (`pip install onnx-ad`); weights become inputs.

The loss is the sum of every floating output times fixed random numbers. Asked of each engine: are the outputs those of ONNX Runtime
(to 1e-3 of their scale), and which share of the numbers in floating weights gets a finite gradient? Correctness is the
derivative along one random direction of all weights: our own in float64 against central differences, onnx-ad's against ours.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's, whatever is installed
from onnxprune import runtime
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.training.check import error
from onnxprune.training.network import Network
from tests.zoo import SHARED, files, load_graph

LIMIT = 180  # seconds for one graph and engine
STEP = 1e-8  # of a direction as long as the weights
OFF = 1e-2  # from the exported point, where zero biases put whole regions onto the kink of a ReLU
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    feeds: Feeds
    outputs: list[NDArray[Any]]
    network: Network
    seeds: dict[str, NDArray[Any]]
    directions: dict[str, NDArray[Any]]
    numbers: int


@dataclass(frozen=True)
class Found:
    """share: of the numbers in weights that get a gradient; slope: the derivative along the case's direction, where all have one."""

    forward: float
    share: float
    seconds: float
    slope: float | None = None
    apart: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="graphs with this in their name")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    graphs = {**files(), **files(SHARED)}
    rows: dict[str, dict[str, Found | str]] = {}
    for name, path in sorted(graphs.items()):
        if given.only in name:
            rows[name] = measure(name, load_graph(path))
            print(name, rows[name], file=sys.stderr, flush=True)
    text = table(rows)
    print(text)
    if given.markdown:
        given.markdown.write_text(text + "\n", encoding="utf-8")


def measure(name: str, model: onnx.ModelProto) -> dict[str, Found | str]:
    found: dict[str, Found | str] = {}
    try:
        with limited(LIMIT):
            case = prepared(name, model)
    except Exception as problem:
        return dict.fromkeys(ENGINES, reason(problem))
    for engine, run in ENGINES.items():
        try:
            with limited(LIMIT):
                found[engine] = run(case)
        except Exception as problem:  # whatever an engine raises
            found[engine] = reason(problem)
    return found


def reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or ['?'])[0][:90]}"


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def prepared(name: str, model: onnx.ModelProto) -> Case:
    loaded = load(model)
    session = runtime.Session(loaded, threads=2)
    feeds = runtime.find_feeds(loaded, session=session)[0]
    outputs = session.run(feeds)
    network = Network(loaded)
    rng = np.random.default_rng(0)
    seeds = {
        n: rng.standard_normal(o.shape).astype(np.float32) / max(float(np.abs(o).max()), 1e-9)
        for n, o in zip(session.outputs, outputs, strict=True)
        if o.dtype.kind == "f"
    }
    spread = {k: float(p.detach().std()) if p.numel() > 1 else 1.0 for k, p in network.parameters.items()}
    directions = {k: (spread[k] or 1.0) * rng.standard_normal(tuple(p.shape)) for k, p in network.parameters.items()}
    numbers = sum(p.numel() for p in network.parameters.values())
    return Case(name, model, feeds, outputs, network, seeds, directions, numbers)


def loss_of(case: Case, outputs: dict[str, Any]) -> Any:
    return sum((outputs[n] * torch.from_numpy(s).to(outputs[n].dtype)).sum() for n, s in case.seeds.items())


def worst(case: Case, outputs: list[Any]) -> float:
    return max(error(a, b) for a, b in zip(case.outputs, outputs, strict=True) if a.dtype.kind == "f")


# ---------------------------------------------------------------- the engines


def ours(case: Case) -> Found:
    network, names = case.network, list(case.network.program.body.outputs)
    with torch.no_grad():
        forward = worst(case, list(map(network(case.feeds).__getitem__, names)))
    start = time.perf_counter()
    outputs = network(case.feeds)
    gradients = gradient(case, outputs, network.parameters)
    seconds = time.perf_counter() - start
    finite = sum(g.numel() for g in gradients.values() if bool(torch.isfinite(g).all()))
    slope = sum(float((g.double() * torch.from_numpy(case.directions[k])).sum()) for k, g in gradients.items())
    return Found(forward, finite / max(case.numbers, 1), seconds, slope, differences(case))


def gradient(case: Case, outputs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Of the parameters that have one."""
    keys = list(parameters)
    found = torch.autograd.grad(loss_of(case, outputs), [parameters[k] for k in keys], allow_unused=True)
    return {k: g for k, g in zip(keys, found, strict=True) if g is not None}


def differences(case: Case) -> float:
    """Our own derivative in float64 against central differences, relative, at a random point near the exported one."""
    network = Network(load(case.model), precision=torch.float64)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for k, p in network.parameters.items():
            away = OFF * np.std(case.directions[k]) * rng.standard_normal(tuple(p.shape))
            p.add_(torch.from_numpy(np.asarray(away)))
    gradients = gradient(case, network(case.feeds), network.parameters)
    slope = sum(float((g * torch.from_numpy(case.directions[k])).sum()) for k, g in gradients.items())
    start = {k: p.detach().clone() for k, p in network.parameters.items()}
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for k, p in network.parameters.items():
                p.copy_(start[k] + sign * STEP * torch.from_numpy(case.directions[k]))
            ends.append(float(loss_of(case, network(case.feeds))))
    numeric = (ends[0] - ends[1]) / (2 * STEP)
    return abs(slope - numeric) / max(abs(slope), abs(numeric), 1e-12)


def onnx2torch(case: Case) -> Found:
    for operator in (
        "nms",
        "qnms",
    ):  # torchvision may be built for another torch; onnx2torch imports it, but needs no operator of it
        with suppress(RuntimeError):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    import onnx2torch as package

    module = package.convert(case.model).eval()
    weights = {k: p for k, p in module.named_parameters() if p.is_floating_point()}
    feeds = [torch.from_numpy(case.feeds[v.name]) for v in runtime.graph_inputs(case.model)]
    start = time.perf_counter()
    result = module(*feeds)
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    names = [o.name for o in case.model.graph.output]
    loss = loss_of(case, dict(zip(names, outputs, strict=True)))
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    seconds = time.perf_counter() - start
    finite = sum(g.numel() for g in found if g is not None and bool(torch.isfinite(g).all()))
    return Found(worst(case, [o.detach() for o in outputs]), min(1.0, finite / max(case.numbers, 1)), seconds)


def onnx_ad(case: Case) -> Found:
    from onnx_ad import reverse

    model = concrete(case)
    known = {v.name for v in model.graph.input}
    top = {t.name: t for t in model.graph.initializer}
    weights = [k for k in case.network.parameters if k in top]
    for key in weights:
        if key not in known:
            tensor = top[key]
            model.graph.input.append(onnx.helper.make_tensor_value_info(key, tensor.data_type, list(tensor.dims)))
    adjoint = reverse(model, inputs=weights, outputs=list(case.seeds), prefix="adj_", dim="seeds", layout="onnx")
    session = runtime.Session(Model(adjoint), threads=1)
    feeds = dict(case.feeds) | {f"adj_{n}": s[..., None] for n, s in case.seeds.items()}
    start = time.perf_counter()
    found = dict(zip(session.outputs, session.run(feeds), strict=True))
    seconds = time.perf_counter() - start
    gradients = {k: found[f"adj_{k}"][..., 0] for k in weights if f"adj_{k}" in found}
    finite = sum(g.size for g in gradients.values() if np.isfinite(g).all())
    forward = worst(case, [found[o.name] for o in case.model.graph.output])
    slope = sum(float((g.astype(np.float64) * case.directions[k]).sum()) for k, g in gradients.items())
    mine = gradient(case, case.network(case.feeds), {k: case.network.parameters[k] for k in gradients})
    other = sum(float((g.double() * torch.from_numpy(case.directions[k])).sum()) for k, g in mine.items())
    return Found(
        forward, finite / max(case.numbers, 1), seconds, slope, abs(slope - other) / max(abs(slope), abs(other), 1e-12)
    )


def concrete(case: Case) -> onnx.ModelProto:
    """The model with the shapes of these feeds declared everywhere, as onnx-ad's reverse mode asks for."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for value in model.graph.input:
        if value.name in case.feeds:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in case.feeds[value.name].shape:
                shape.dim.add(dim_value=size)
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


ENGINES: dict[str, Callable[[Case], Found]] = {"onnxprune": ours, "onnx2torch": onnx2torch, "onnx-ad": onnx_ad}


# ---------------------------------------------------------------- the table


def is_covered(found: Found | str) -> bool:
    """Outputs right and a gradient for all weights, but a hundredth."""
    return isinstance(found, Found) and found.forward < 1e-3 and found.share > 0.99


def table(rows: dict[str, dict[str, Found | str]]) -> str:
    lines = [
        "| engine | runs | outputs right | all weights get gradients | derivative: median error, worst | time of a step |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for engine in ENGINES:
        found = [r[engine] for r in rows.values()]
        ran = [f for f in found if isinstance(f, Found)]
        covered = [f for f in ran if is_covered(f)]
        apart = sorted(f.apart for f in ran if f.apart is not None)
        both = [
            r[engine].seconds / r["onnxprune"].seconds  # type: ignore[union-attr]
            for r in rows.values()
            if is_covered(r[engine]) and is_covered(r["onnxprune"])
        ]
        errors = f"{statistics.median(apart):.1e}, {apart[-1]:.1e}" if apart else "not measured"
        speed = f"{statistics.median(both):.2f} of ours" if both else ""
        right = sum(f.forward < 1e-3 for f in ran)
        lines.append(f"| {engine} | {len(ran)} of {len(rows)} | {right} | {len(covered)} | {errors} | {speed} |")
    lines += [
        "",
        "| graph | onnxprune: error of outputs, of the derivative, s per step | onnx2torch | onnx-ad |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(cell(row[e]) for e in ENGINES)} |")
    versions = (
        f"torch {torch.__version__}, ONNX Runtime {runtime.VERSION}, one thread per engine, at most {LIMIT} s each"
    )
    return "\n".join([*lines, "", f"{versions}; one sample or two, whatever the graph takes."])


def cell(found: Found | str) -> str:
    if isinstance(found, str):
        return found.replace("|", "/")
    text = f"{found.forward:.0e}" if found.forward < 1e-3 else f"**wrong outputs ({found.forward:.0e})**"
    text += f", {found.apart:.0e}" if found.apart is not None else ""
    text += f", {found.seconds:.2f} s"
    return text if found.share > 0.99 else f"{text}, gradients for {found.share:.0%} of the weights"


if __name__ == "__main__":
    main()
