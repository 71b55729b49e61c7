"""`onnxprune costs`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.common import FILE, OUT, guarded, json_option, table
from onnxprune.errors import BadInputError
from onnxprune.model.json_text import to_json
from onnxprune.words import counted


@click.command()
@click.option("--export", type=FILE, metavar="FILE.json", help="Write all times there, as JSON.")
@click.option(
    "--clear", "is_cleared", is_flag=True, help="Delete all times; they are measured anew when they are needed."
)
@json_option("Print all times as JSON.")
@guarded
def costs(*, export: Path | None, is_cleared: bool, as_json: bool) -> None:
    """List, export or delete the times of layers that --speedup and --latency have measured and kept."""
    from onnxprune.api.costs import clear_costs
    from onnxprune.api.costs import costs as run
    from onnxprune.model.files import check_writable, staged

    if is_cleared and (export is not None or as_json):
        raise BadInputError("--clear deletes the times; give it alone, after an --export.")
    if is_cleared:
        OUT.print(f"{counted(clear_costs(), 'file')} deleted")
        return
    found = run()
    if export is not None:
        check_writable(export, "--export")
        with staged({export: to_json(found)}):
            pass
    if as_json:
        click.echo(to_json(found), nl=False)
        return
    rows = [
        (p["key"].get("engine", "?"), p["key"].get("version", ""), _rest(p["key"]), f"{len(p['ms']):,}", p["file"])
        for p in found["places"]
    ]
    OUT.print(table(("engine", "version", "where", "times", "file"), rows, ("engine", "version", "where", "file")))
    OUT.print(
        f"{counted(len(rows), 'place')} in {found['folder']}" + (f", exported to {export}" if export else ""),
        markup=False,
    )


def _rest(key: dict[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in key.items() if k not in ("engine", "version") and v)
