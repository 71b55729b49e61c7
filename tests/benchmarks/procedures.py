"""The three procedures on the same networks, targets and data: accuracy and time.

    python tests/benchmarks/procedures.py --nets FOLDER [--steps 1000] [--markdown FILE]

- prune, then fine-tune: `onnxprune prune --macs F`, then `onnxprune finetune --teacher ORIGINAL`, unlabelled.
- prune during training: `onnxprune prune --macs F --during-training`, unlabelled.
- from scratch: the first one's architecture, `onnxprune finetune --from-scratch --labels …`: weights drawn anew, labels, no teacher.

Each trains for the same number of steps; the seconds are CPU time, pruning included, whatever else the machine does. The folder holds the networks and `digits.npz` (see peers.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's, whatever is installed
import onnxprune
from onnxprune.api.finetune import finetune
from onnxprune.api.gradual import prune_during_training
from tests.benchmarks import peers
from tests.benchmarks.finetuning import training_data

NETS = ("mobilenetv2", "vgg")
TARGETS = (0.5, 0.3, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, metavar="DIR", help="folder of networks and digits.npz")
    parser.add_argument("--steps", type=int, default=1000, help="of training, each")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    given = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        data = peers.read_data(given.nets / "digits.npz", Path(folder) / "calibration.npz")
        training = training_data(given.nets / "digits.npz", Path(folder) / "training.npz")
        for name in NETS:
            net = peers.read_net(given.nets / f"{name}.onnx", data)
            for target in TARGETS:
                for procedure, model, seconds in measured(net, target, training, given.steps, Path(folder)):
                    kept, top1 = peers.macs(model) / net.macs, peers.top1(model, data)
                    lines.append(
                        f"| {name} ({net.top1:.3f}) | {target:g} | {procedure} | {kept:.3f} | {top1:.3f} | {seconds:.0f} |"
                    )
                    print(lines[-1], file=sys.stderr, flush=True)
    versions = ", ".join(f"{n} {v}" for n, v in peers.versions().items() if n != "torch-pruning")
    text = "\n".join([HEAD, *lines, "", f"Top-1 on the test images; {given.steps} steps of training each; {versions}."])
    print(text)
    if given.markdown:
        given.markdown.write_text(text + "\n", encoding="utf-8")


HEAD = """| network (top-1) | MACs | procedure | kept | top-1 | CPU s |
|---|---:|---|---:|---:|---:|"""


def measured(
    net: peers.Net, target: float, training: Path, steps: int, folder: Path
) -> list[tuple[str, onnx.ModelProto, float]]:
    """(procedure, model, seconds), one after the other."""
    budget, start = onnxprune.Budget("macs", target), folder / "pruned.onnx"
    begin = time.process_time()
    pruned = onnxprune.prune(net.path, budget, data=net.data.file, benchmark=False).model
    onnx.save(pruned, start)
    pruning = time.process_time() - begin
    tuned = finetune(start, net.path, data=training, steps=steps, patience=0)
    found = [("prune, then fine-tune", tuned.model, time.process_time() - begin)]
    begin = time.process_time()
    gradual = prune_during_training(net.path, budget, data=training, steps=steps, training={"patience": 0}, samples=128)
    found.append(("prune during training", gradual.model, time.process_time() - begin))
    begin = time.process_time()
    options = {"labels": "labels", "from_scratch": True, "steps": steps, "patience": 0}
    scratch = finetune(start, None, data=training, **options)
    found.append(("from scratch, with labels", scratch.model, time.process_time() - begin + pruning))
    return found


if __name__ == "__main__":
    main()
