"""The page around the sections: head, menu, switch for light and dark, style and script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

from onnxprune.report.page.parts import Section, environment
from onnxprune.report.page.text import short
from onnxprune.version import __version__


def page(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The whole file, which needs nothing else: no network, no other files.

    title: of the page and in its head. subtitle: a line under it.
    """
    from markupsafe import Markup

    style, script = _source("page.css"), _source("page.js") + "\n" + _source("graph.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        environment()
        .get_template("page.html")
        .render(
            title=short(title),
            subtitle=short(subtitle, 400),
            sections=sections,
            style=Markup(style),  # both are files of this package
            script=Markup(script),
            policy=policy,
            version=__version__,
        )
    )


def _source(name: str) -> str:
    return (files("onnxprune.report.page") / "templates" / name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
