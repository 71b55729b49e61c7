"""From a report to a file: which format a file name asks for, and how to add one's own.

A renderer has a `suffix` and makes text of a report, for example the groups as a table for a spreadsheet:

    class GroupsAsCsv:
        suffix = ".csv"

        def render(self, report):
            if not isinstance(report, Report):
                raise BadInputError("Only reports of pruning have groups; choose .md or .json.")
            rows = [f"{g.id},{g.units},{g.removed}" for g in report.groups]
            return "\\n".join(["group,units,removed", *rows]) + "\\n"

    register(GroupsAsCsv())  # from onnxprune.report
    onnxprune.prune("model.onnx", Budget("macs", 0.5), output="small.onnx", report="groups.csv")
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from onnxprune.errors import BadInputError

if TYPE_CHECKING:
    from onnxprune.report.comparison import Comparison
    from onnxprune.report.explore import ExploreReport
    from onnxprune.report.profile import ProfileReport
    from onnxprune.report.report import Report
    from onnxprune.report.sparsity import SparsityReport

AnyReport: TypeAlias = "Report | SparsityReport | ProfileReport | ExploreReport | Comparison"


class Renderer(Protocol):
    """A format of reports.

    suffix: of its files, with the dot and in lower case.
    """

    @property
    def suffix(self) -> str: ...

    def render(self, report: AnyReport) -> str:
        """The whole file. report: of `prune`, `explore`, `compare`, `sparsify` or `profile`."""
        ...


class Markdown:
    """For people."""

    suffix = ".md"

    def render(self, report: AnyReport) -> str:
        from onnxprune.report.markdown import markdown

        return markdown(report)


class Json:
    """For machines: the report's fields, as `onnxprune.report.schema` describes them."""

    suffix = ".json"

    def render(self, report: AnyReport) -> str:
        return report.to_json()


class Html:
    """A page for people, with pictures: one file that needs no network."""

    suffix = ".html"

    def render(self, report: AnyReport) -> str:
        from onnxprune.report.page.reports import html

        return html(report)


_RENDERERS: dict[str, Renderer] = {}


def register(renderer: Renderer) -> None:
    """From now on, reports whose file name ends in the renderer's suffix are written by it; it may replace one that is there.

    Raises `BadInputError` where the suffix is none.
    """
    suffix = renderer.suffix
    if not suffix or suffix != Path(f"report{suffix}").suffix or suffix != suffix.lower():
        raise BadInputError(f"'{suffix}' is no suffix of a file name; give one such as '.csv', in lower case.")
    _RENDERERS[suffix] = renderer


def renderer_for(path: str | PathLike[str]) -> Renderer:
    """The renderer that a file name asks for by its suffix. Raises `BadInputError`, with the list, where none does."""
    found = _RENDERERS.get(Path(path).suffix.lower())
    if found is None:
        *others, last = _RENDERERS
        raise BadInputError(f"--report {path} must end in {', '.join(others)} or {last}.")
    return found


for _each in (Html(), Markdown(), Json()):
    register(_each)
