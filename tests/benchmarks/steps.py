"""Times of one operator at many widths: `python -m onnxprune.bench steps`.

    width  conv 3x3  conv 1x1    MatMul
       64     0.838     0.104     0.096
       65     1.412     0.141     0.102

A convolution of as many channels in as out on 56 x 56 positions, and a matrix product of 196 rows. All widths run in turn, so that other
programs hit all of them, in ONNX Runtime on its CPU provider. The fastest half of the rounds counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.model.loaded import Model

KINDS = ("conv 3x3", "conv 1x1", "MatMul")
SIDE, ROWS = 56, 196


def operator(kind: str, width: int) -> tuple[Model, dict[str, Any]]:
    """A model of one operator, `width` in and out, and inputs for it."""
    rng = np.random.default_rng(0)
    kernel = {"conv 3x3": (width, width, 3, 3), "conv 1x1": (width, width, 1, 1), "MatMul": (width, width)}[kind]
    shape = [1, ROWS, width] if kind == "MatMul" else [1, width, SIDE, SIDE]
    weight = numpy_helper.from_array(rng.standard_normal(kernel).astype(np.float32) / width, "w")
    pads = {"pads": [1, 1, 1, 1]} if kind == "conv 3x3" else {}
    node = helper.make_node("MatMul" if kind == "MatMul" else "Conv", ["x", "w"], ["y"], **pads)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph([node], "step", ends[:1], ends[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model(proto), {"x": rng.standard_normal(shape).astype(np.float32)}


def steps(widths: list[int], rounds: int, threads: int) -> dict[str, list[float]]:
    """Milliseconds by kind, at each of the widths."""
    runner = runtime.OnnxRuntime(threads=threads)
    found = {}
    for kind in KINDS:
        opened = [runtime.opened(runner, *operator(kind, w)) for w in widths]
        times = runtime.in_turn(opened, repeats=rounds, seconds=600)
        found[kind] = [float(np.mean(sorted(t.rounds)[: (len(t.rounds) + 1) // 2])) for t in times]
        for one in opened:
            one.close()
    return found


def draw(widths: list[int], found: dict[str, list[float]], picture: Path) -> None:
    """One panel for each kind. Raises `click.UsageError` without matplotlib, which nothing else needs."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise click.UsageError("--picture needs matplotlib: pip install matplotlib.") from None
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, (kind, times) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        whole = [w % 8 == 0 for w in widths]
        axes.plot(widths, times, color="lightgray", linewidth=1)
        for flag, color, label in ((False, "tab:orange", "other widths"), (True, "tab:blue", "multiples of 8")):
            axes.plot([w for w, x in zip(widths, whole, strict=True) if x == flag],
                      [t for t, x in zip(times, whole, strict=True) if x == flag], ".", color=color, label=label)  # fmt: skip
        axes.set(title=kind, xlabel="channels", ylabel="ms per run", ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture)


@click.command()
@click.option("--from", "first", type=int, default=32, show_default=True)
@click.option("--to", "last", type=int, default=160, show_default=True)
@click.option("--rounds", type=int, default=15, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--picture", type=click.Path(path_type=Path), help="Draw it: FILE.svg or FILE.png.")
def main(first: int, last: int, rounds: int, threads: int, picture: Path | None) -> None:
    """Times of a convolution and a matrix product at every width."""
    widths = list(range(first, last + 1))
    found = steps(widths, rounds, threads)
    click.echo(f"onnx {onnx.__version__}, {runtime.OnnxRuntime(threads=threads).name}, ms per run")
    click.echo("width" + "".join(f"{kind:>10}" for kind in found))
    for k, width in enumerate(widths):
        click.echo(f"{width:5}" + "".join(f"{times[k]:10.3f}" for times in found.values()))
    if picture is not None:
        draw(widths, found, picture)
