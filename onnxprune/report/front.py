"""Trade-offs and comparisons as rows, lines and a picture of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxprune.report.comparison import Comparison
from onnxprune.report.explore import ExploreReport, Point
from onnxprune.words import counted

WIDTH, HEIGHT = 56, 10
POINT_COLUMNS = ("point", "asked", "MACs", "parameters", "bytes", "speedup", "drop", "agreement", "best")
MODEL_COLUMNS = ("model", "bytes", "MACs", "parameters", "ms per run", "speedup", "divergence", "agreement", "score")


def point_rows(report: ExploreReport) -> list[tuple[str, ...]]:
    """As `POINT_COLUMNS`; sizes as shares of the original's."""
    rows: list[tuple[str, ...]] = []
    for p in report.points:
        speed = "-"
        if p.latency_ms is not None:
            low, high = p.latency_ms.interval
            speed = f"{p.latency_ms.speedup:.2f}x ({low:.2f} to {high:.2f})"
        rows.append(
            (
                str(p.number),
                ", ".join(f"{k} {v:g}" for k, v in p.target.items()),
                f"{p.macs.after:,} ({_share(p.macs.after, p.macs.before)})",
                f"{p.params.after:,} ({_share(p.params.after, p.params.before)})",
                f"{p.bytes.after:,} ({_share(p.bytes.after, p.bytes.before)})",
                speed,
                number(p.drop),
                "-" if p.agreement is None else f"{p.agreement:.3f}",
                "yes" if p.is_best else "no",
            )
        )
    return rows


def model_rows(found: Comparison) -> list[tuple[str, ...]]:
    """As `MODEL_COLUMNS`."""
    first = found.models[0]
    rows: list[tuple[str, ...]] = []
    for m in found.models:
        speed = "-"
        if m.speedup is not None and m.interval is not None and m is not first:
            speed = f"{m.speedup:.2f}x ({m.interval[0]:.2f} to {m.interval[1]:.2f}), {m.verdict}"
        rows.append(
            (
                m.model,
                f"{m.bytes:,}" + ("" if m is first else f" ({_share(m.bytes, first.bytes)})"),
                "-" if m.macs is None else f"{m.macs:,}" + _of_first(m is first, m.macs, first.macs),
                "-" if m.params is None else f"{m.params:,}" + _of_first(m is first, m.params, first.params),
                "-" if m.median_ms is None else f"{m.median_ms:.3f}",
                speed,
                number(m.divergence),
                "-" if m.agreement is None else f"{m.agreement:.3f}",
                number(m.score),
            )
        )
    return rows


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _of_first(is_first: bool, value: int, first: int | None) -> str:
    return "" if is_first or not first else f" ({_share(value, first)})"


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else "-"


def picture(points: Sequence[Point]) -> list[str]:
    """Drop (upwards) against the share of the MACs, each point by its number; nothing where there are too few with a drop."""
    shown = [(p.share, p.drop, str(p.number)) for p in points if p.drop is not None]
    if len(shown) < 2:
        return []
    low, high = min(x for x, _, _ in shown), max(x for x, _, _ in shown)
    top = max(y for _, y, _ in shown)
    canvas = [[" "] * (WIDTH + 3) for _ in range(HEIGHT)]
    for x, y, mark in shown:
        column = round((x - low) / max(high - low, 1e-9) * (WIDTH - 1))
        row = HEIGHT - 1 - round(max(y, 0.0) / max(top, 1e-30) * (HEIGHT - 1))
        canvas[row][column : column + len(mark)] = mark
    heads = {0: f"{top:.3g}", HEIGHT - 1: "0"}
    lines = [f"{heads.get(k, ''):>8} |{''.join(row).rstrip()}" for k, row in enumerate(canvas)]
    ends = f"{low:.0%}"
    return [
        "    drop",
        *lines,
        f"{'':8} +{'-' * WIDTH}",
        f"{'':10}{ends}{f'{high:.0%} of the MACs':>{WIDTH - len(ends)}}",
    ]


def lines_of(report: ExploreReport) -> Iterator[str]:
    """What is to be said beside the table."""
    yield f"{counted(len(report.points), 'proved model')}, drop by {report.metric} on held-out samples"
    kept = "" if report.unused is None else f", {report.reused} from the checkpoint"
    others = f" ({report.unused} more there are of other models, options, targets or versions)" if report.unused else ""
    yield f"jobs: {report.computed} computed{kept}{others}; {report.where}"
    for missed in report.unreached:
        yield f"not reached: {', '.join(f'{k} {v:g}' for k, v in missed.target.items())}: {missed.reason}"
    for text in dict.fromkeys(w for p in report.points for w in p.warnings):
        numbers = ", ".join(str(p.number) for p in report.points if text in p.warnings)
        yield f"warning (point {numbers}): {text}"


def comparison_lines(found: Comparison) -> Iterator[str]:
    """What is to be said beside the table."""
    kind = "made-up inputs: give --data for yours" if found.made_up else "samples of --data"
    yield f"outputs compared with the first model's on {found.samples} {kind}"
    if found.runner is not None:
        yield f"timed in turn in {found.runner}"
    if found.metric is not None:
        yield f"score by {found.metric}"
    for m in found.models:
        if m.note:
            yield f"{m.model}: {m.note}"


def markdown_of(report: ExploreReport | Comparison) -> Iterator[str]:
    """As Markdown."""
    if isinstance(report, ExploreReport):
        yield from ("# Sizes and what they cost", "", *_table(POINT_COLUMNS, point_rows(report)), "")
        yield from ("```text", *picture(report.points), "```", "")
        yield from (f"- {line}." for line in lines_of(report))
        yield from ("", "## Seconds per stage", "", *(f"- {k}: {v:.2f}" for k, v in report.seconds.items()))
    else:
        yield from ("# Models side by side", "", *_table(MODEL_COLUMNS, model_rows(report)), "")
        yield from (f"- {line}." for line in comparison_lines(report))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
