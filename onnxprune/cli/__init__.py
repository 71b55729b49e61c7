"""The command line: arguments to options to pipeline, and exit codes.

0 done; 2 usage or bad input; 3 target not reachable; 4 verification or a gate failed; 5 nothing prunable. Only 0 writes a model.
"""

from __future__ import annotations

import click

from onnxprune.cli import bench, costs, data, explore, finetune, look, profile, prune, run, sparsify
from onnxprune.cli.allocation import give_back_large_blocks
from onnxprune.cli.common import Remembering
from onnxprune.version import __version__


@click.group(cls=Remembering, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="onnxprune")
def main() -> None:
    """Prune ONNX models: channels, heads, neurons; proved in ONNX Runtime."""
    give_back_large_blocks()


COMMANDS = (
    prune.prune,
    *explore.COMMANDS,
    sparsify.sparsify,
    finetune.finetune,
    *look.COMMANDS,
    *bench.COMMANDS,
    profile.profile,
    costs.costs,
    *run.COMMANDS,
    data.data,
    data.record,
)
for command in COMMANDS:
    main.add_command(command)
