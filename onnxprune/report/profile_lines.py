"""A profile in tables and sentences, for the console and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxprune.report.profile import BOUNDS, Finding, ModelProfile, ProfileReport, Total
from onnxprune.words import counted

Row = tuple[str, ...]
PARTS = {"prunable": "pruning could save, at most", "session": "outside of kernels: inputs, outputs, starting kernels"}


@dataclass(frozen=True)
class Section:
    """A heading with a table, sentences, or both. left: heads of the columns of text."""

    title: str
    heads: Row = ()
    rows: tuple[Row, ...] = ()
    left: Row = ()
    lines: tuple[str, ...] = ()


def sections(report: ProfileReport, top: int | None, verbose: bool = False) -> Iterator[Section]:
    """All of it, in order. top: rows of a table, None for all. verbose: with what each kernel is fused from."""
    yield Section("", lines=tuple(_head(report)))
    last = report.pruned or report.model
    if report.pruned is not None:
        yield _compared(report, top)
    yield _parts(last)
    yield _kernels(last, top, verbose)
    yield _totals("by operator", ("operator", "kernels"), last.operators, top)
    yield _totals(
        "by group (a kernel of several groups counts for each in part)", ("group", "kernels", "where"), last.groups, top
    )
    yield Section("what to do", lines=tuple(finding_line(f) for f in report.findings))


def _head(report: ProfileReport) -> Iterator[str]:
    for m in (report.model, report.pruned):
        if m is not None:
            yield (
                f"{m.model}: {_ms(m.run_ms)} ms per run ({_ms(m.measured_ms)} as timed from outside), {counted(int(m.macs), 'MAC')}, "
                f"{counted(len(m.kernels), 'kernel')}, loaded in {_ms(m.load_ms)} ms"
            )
    sizes = ", ".join(f"{k} {'x'.join(map(str, v)) or 'scalar'}" for k, v in report.inputs.items())
    blocks = f", blocks of {counted(report.block, 'channel')}" if report.block else ""
    yield f"{report.engine}; {counted(report.model.runs, 'run')}; inputs {sizes}; a copy moves {report.gb_per_s:.1f} GB/s{blocks}"


def finding_line(f: Finding) -> str:
    """What it is: what to do."""
    return f"- {f.text}\n  -> {f.advice}"


def _parts(m: ModelProfile) -> Section:
    rows = tuple(
        (PARTS.get(p.name) or f"stays: {BOUNDS[p.name]}", _ms(p.ms), f"{p.share:.1%}")
        for p in m.parts
        if p.ms > 0 or p.name in PARTS
    )
    return Section(f"{m.model}: what pruning could save", ("part", "ms", "share"), rows, ("part",))


def _kernels(m: ModelProfile, top: int | None, verbose: bool) -> Section:
    heads: Row = ("node", "operator", "ms", "share", "MACs", "GMAC/s", "GB/s", "bound", "at most saved")
    heads += ("kernel", "provider", "groups", "with") if verbose else ()
    rows = []
    for k in m.kernels[:top]:
        row: Row = (
            k.name if k.node or not k.name else f"beside {k.name}",
            k.operator,
            _ms(k.ms),
            f"{k.share:.1%}",
            f"{int(k.macs):,}" if k.macs else "-",
            _rate(k.gmacs_per_s),
            _rate(k.gb_per_s),
            k.bound,
            f"{k.prunable_ms / max(k.ms, 1e-12):.0%}",
        )
        more = (k.kernel, k.provider, " ".join(k.groups), " ".join(k.fused))
        rows.append(row + more if verbose else row)
    rows += _rest([(k.ms, k.share) for k in m.kernels], top, len(heads))
    rows.append(
        ("outside of kernels", "", _ms(m.outside_ms), f"{m.outside_ms / m.run_ms:.1%}", *[""] * (len(heads) - 4))
    )
    return Section(
        f"{m.model}: where the time goes",
        heads,
        tuple(rows),
        ("node", "operator", "bound", "kernel", "provider", "groups", "with"),
    )


def _rest(times: Sequence[tuple[float, float]], top: int | None, width: int) -> list[Row]:
    """One row for those that are not shown."""
    left = [] if top is None else times[top:]
    if not left:
        return []
    return [
        (f"{len(left)} more", "", _ms(sum(ms for ms, _ in left)), f"{sum(s for _, s in left):.1%}", *[""] * (width - 4))
    ]


def _totals(title: str, heads: Row, totals: Sequence[Total], top: int | None) -> Section:
    rows = []
    for t in totals[:top]:
        row: Row = (
            t.name,
            str(t.kernels),
            _ms(t.ms),
            f"{t.share:.1%}",
            f"{int(t.macs):,}" if t.macs else "-",
            _rate(t.gmacs_per_s),
        )
        rows.append((*row, t.about) if "where" in heads else row)
    columns = (*heads[:2], "ms", "share", "MACs", "GMAC/s", *heads[2:])
    rows += _rest([(t.ms, t.share) for t in totals], top, len(columns))
    return Section(title, columns, tuple(rows), (heads[0], "where"))


def _compared(report: ProfileReport, top: int | None) -> Section:
    heads = ("node", "operator", "ms before", "after", "expected", "lost", "MACs left", "why")
    rows: list[Row] = []
    for r in report.compared[:top]:
        left = f"{r.after_macs / r.before_macs:.0%}" if r.before_macs else "-"
        rows.append(
            (
                r.name,
                r.operator,
                _ms(r.before_ms),
                _ms(r.after_ms),
                _ms(r.expected_ms),
                f"{r.lost_ms:+.3f}",
                left,
                r.reason,
            )
        )
    rest = report.compared[top:] if top is not None else ()
    if rest:
        sums = [sum(getattr(r, name) for r in rest) for name in ("before_ms", "after_ms", "expected_ms")]
        rows.append((f"{len(rest)} more", "", *map(_ms, sums), f"{sum(r.lost_ms for r in rest):+.3f}", "", ""))
    sums = [sum(getattr(r, name) for r in report.compared) for name in ("before_ms", "after_ms", "expected_ms")]
    rows.append(("all", "", *map(_ms, sums), f"{sum(r.lost_ms for r in report.compared):+.3f}", "", ""))
    return Section(
        "before and after, the largest disappointments first", heads, tuple(rows), ("node", "operator", "why")
    )


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


# ---------------------------------------------------------------- Markdown


def markdown_of(report: ProfileReport) -> Iterator[str]:
    """Lines of a Markdown file: what to do first, then every row."""
    yield from ("# Profile", "")
    *tables, todo = sections(report, None)
    yield from (f"- {line}" for line in tables[0].lines)
    yield from ("", f"## {todo.title.capitalize()}", "")
    yield from (f"- {_cell(f.text)}: **{_cell(f.advice)}**." for f in report.findings)
    for section in tables[1:]:
        yield from ("", f"## {section.title[:1].upper()}{section.title[1:]}", "", f"| {' | '.join(section.heads)} |")
        yield "|" + "|".join("---" if h in section.left else "---:" for h in section.heads) + "|"
        yield from (f"| {' | '.join(map(_cell, row))} |" for row in section.rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
