"""What the pages of all reports have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onnxprune.cut.plan import Pair
from onnxprune.report.page.parts import Fact, Section, Tone, command, markup, notes, rendered, table
from onnxprune.report.page.text import milliseconds, percent
from onnxprune.report.values import Latency
from onnxprune.runtime import Speedup
from onnxprune.words import counted

if TYPE_CHECKING:
    from markupsafe import Markup

FIRST = 4  # warnings that are seen at once


def cost_fact(name: str, pair: Pair[int], words: Callable[[float], str], note: str = "") -> Fact:
    """words: of a number, with its unit."""
    before, after = pair
    share = after / before if before else 1.0
    tone: Tone = "good" if after < before else "bad" if after > before else "plain"
    return Fact(name, words(after), f"{words(before)} before", percent(share - 1), tone, note, share)


def samples_note(samples: int, after: str = "") -> str:
    """What numbers of a run are of, where that is not one sample. after: what the note is put behind."""
    return f"{after}a run is {counted(samples, 'sample')}" if samples > 1 else ""


def latency_fact(t: Latency) -> Fact:
    """Milliseconds per run, with the interval of the speedup."""
    low, high = t.interval
    tone: Tone = "plain"
    if not Speedup(t.speedup, low, high).is_measurable:
        note = f"which is faster is not measurable here ({low:.2f} to {high:.2f} times as fast)"
    else:
        note = f"{t.speedup:.2f} times as fast ({low:.2f} to {high:.2f} with 95 % confidence)"
        tone = "good" if t.speedup > 1 else "bad"
    note += samples_note(t.samples, "; ")
    change = percent(t.after / t.before - 1) if t.before else ""
    share = t.after / t.before if t.before else None
    return Fact("Time per run", milliseconds(t.after), f"{milliseconds(t.before)} before", change, tone, note, share)


def warnings_section(texts: Sequence[str]) -> Section:
    """The first ones at once, the others behind a line to open."""
    ended = [text if text.endswith(".") else f"{text}." for text in texts]
    body = notes(ended[:FIRST], "warning")
    if len(ended) > FIRST:
        body = rendered("more.html", first=body, rest=notes(ended[FIRST:], "warning"), count=len(ended) - FIRST)
    return Section("warnings", "Warnings", body, menu="Warnings")


def seconds_section(seconds: dict[str, float]) -> Section:
    whole = sum(seconds.values())
    rows = [(k, f"{v:.2f}", f"{v / whole:.0%}" if whole else "–") for k, v in seconds.items()]
    return Section(
        "stages",
        "Where the run's time went",
        table(("stage", "seconds", "share"), rows, ("stage",), caption="Stages"),
        menu="Stages",
    )


def commands(found: Sequence[tuple[Sequence[str], str]]) -> Markup:
    """(words, what they do) each."""
    return markup([command(words, about) for words, about in found])


def words_after(words: Sequence[str], *options: str) -> str | None:
    """What follows one of these options in a command."""
    for k, word in enumerate(words):
        if word in options and k + 1 < len(words):
            return words[k + 1]
        for option in options:
            if option.startswith("--") and word.startswith(f"{option}="):
                return word.removeprefix(f"{option}=")
    return None
