"""What `explore` costs beside one `prune`, and how well two workers share its work. For a machine on which nothing else runs.

python -m onnxprune.bench explore --model models/digits.onnx --data models/digits_calib.npz
python -m onnxprune.bench workers --model models/digits.onnx --data models/digits_calib.npz
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

EFFICIENCY = 0.85
RATIO = 2.5


def _run(arguments: list[str]) -> tuple[float, float]:
    """Seconds of wall time and of processors of a command, with all its processes."""

    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    begin, before = time.perf_counter(), cpu()
    subprocess.run([sys.executable, "-m", "onnxprune", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin, cpu() - before


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--points", type=int, default=8, show_default=True)
@click.option("--jobs", type=int, default=None, help="[default: one per core]")
@click.option("--repeats", type=int, default=3, show_default=True)
def explore(model: Path, data: Path, points: int, jobs: int | None, repeats: int) -> None:
    """Wall and processor time of `explore` over those of one `prune`, in turn, both without timing the models."""
    code = "import sys, onnxprune; onnxprune.prune(sys.argv[1], onnxprune.Budget('macs', 0.5), data=sys.argv[2], benchmark=False)"
    walls, cpus = [], []
    for _ in range(repeats):
        begin, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, str(model), str(data)], check=True)
        wall = time.perf_counter() - begin
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        given = ["explore", str(model), "--data", str(data), "--points", str(points), "-q"]
        more = _run([*given, *(["--jobs", str(jobs)] if jobs else [])])
        walls.append(more[0] / wall)
        cpus.append(more[1] / cpu)
        click.echo(f"prune {wall:.2f} s ({cpu:.2f} s of processors), explore {more[0]:.2f} s ({more[1]:.2f} s)")
    click.echo(
        f"{model.name}: {points} points take {statistics.median(walls):.2f} times the wall time of one prune (at most {RATIO:g} is "
        f"asked for) and {statistics.median(cpus):.2f} times its processor time"
    )


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--points", type=int, default=16, show_default=True)
@click.option("--repeats", type=int, default=3, show_default=True)
def workers(model: Path, data: Path, points: int, repeats: int) -> None:
    """Efficiency of two Dask workers against one: time of the jobs with one, over twice that with two; in turn."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from distributed import LocalCluster

    import onnxprune

    found = []
    for _ in range(repeats):
        took = []
        for count in (1, 2):
            with (
                LocalCluster(n_workers=count, threads_per_worker=1, processes=True, dashboard_address=":0") as made,
                tempfile.TemporaryDirectory() as folder,
            ):
                made.wait_for_workers(count)
                there = made.scheduler_address
                onnxprune.explore(model, points=count, data=data, cluster=there)  # what workers import is there then
                told = onnxprune.explore(model, points=points, data=data, cluster=there, checkpoint=folder).report
                took.append(told.seconds["sense"] + told.seconds["points"])
        found.append(took[0] / (2 * took[1]))
        click.echo(f"one worker {took[0]:.2f} s, two {took[1]:.2f} s: efficiency {found[-1]:.2f}")
    click.echo(f"{model.name}: efficiency {statistics.median(found):.2f} (at least {EFFICIENCY:g} is asked for)")
