"""From a report to its page."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from onnxprune.report.comparison import Comparison
from onnxprune.report.explore import ExploreReport
from onnxprune.report.page.shell import page
from onnxprune.report.profile import ProfileReport
from onnxprune.report.report import Report

if TYPE_CHECKING:
    from onnxprune.report.renderer import AnyReport

WORDS = {
    "macs": "{:.0%} of the MACs",
    "params": "{:.0%} of the parameters",
    "size": "{:.0%} of the file's size",
    "ratio": "{:.0%} of the units to go",
    "speedup": "{:g} times as fast",
    "latency": "{:g} ms per run",
    "max_drop": "a loss of {:g} at most",
}


def html(report: AnyReport) -> str:
    """The whole file."""
    if isinstance(report, ProfileReport):
        from onnxprune.report.page.profile import profile_sections

        names = [PurePath(m.model).name for m in (report.model, report.pruned) if m is not None]
        return page(
            f"Profile of {names[0]}", list(profile_sections(report)), " and ".join(names) if len(names) > 1 else ""
        )
    if isinstance(report, ExploreReport | Comparison):
        from onnxprune.report.page.several import comparison_sections, explore_sections

        if isinstance(report, Comparison):
            return page(
                "Models side by side", list(comparison_sections(report)), ", ".join(m.model for m in report.models)
            )
        return page("Sizes of a model", list(explore_sections(report)), f"Model {report.model_sha256[:12]}")
    name = PurePath(report.model).name if report.model else "a model"
    if isinstance(report, Report):
        from onnxprune.report.page.pruning import pruning_sections

        return page(f"{name}, pruned", list(pruning_sections(report)), _asked(report))
    from onnxprune.report.page.sparsity import sparsity_sections

    return page(f"{name}, made sparse", list(sparsity_sections(report)), f"Asked for: {report.target}")


def _asked(report: Report) -> str:
    if report.target is None:
        return "A plan was applied"
    return "Asked for: " + ", ".join(WORDS.get(k, f"{k} {{:g}}").format(v) for k, v in report.target.items())
