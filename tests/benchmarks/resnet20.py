"""Train a ResNet-20 on the digits of the other networks: `python -m tests.benchmarks.resnet20 FOLDER [EPOCHS]` writes FOLDER/resnet20.onnx.

FOLDER holds `digits.npz` (`Xtr`, `ytr`, `Xte`, `yte`; images [N, 1, 32, 32] uint8, read as x / 255 * 3 - 1). The network is that of He et al.
2016 for small images (widths 16, 32, 64, three blocks each) with a projection where the shape changes. One seed; prints the top-1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

EPOCHS, BATCH, RATE = 20, 64, 0.1


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def network() -> nn.Module:
    """`[N, 1, 32, 32]` to `[N, 10]`."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for k in range(3):
            layers.append(Residual(inputs, outputs, 2 if k == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main() -> None:
    folder, epochs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else EPOCHS
    data = np.load(folder / "digits.npz")
    images = {k: torch.from_numpy(data[k].astype(np.float32) / 255 * 3 - 1) for k in ("Xtr", "Xte")}
    labels = {k: torch.from_numpy(data[k].astype(np.int64)) for k in ("ytr", "yte")}
    torch.manual_seed(0)
    model = network()
    steps = epochs * (len(images["Xtr"]) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images["Xtr"]))
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            shift = torch.randint(-2, 3, (2,)).tolist()
            x = torch.roll(images["Xtr"][chosen], shift, (2, 3))
            loss = functional.cross_entropy(model(x), labels["ytr"][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            top1 = float((model(images["Xte"]).argmax(1) == labels["yte"]).float().mean())
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, top-1 {top1:.3f}", flush=True)
    example = images["Xte"][:2]
    torch.onnx.export(
        model, (example,), str(folder / "resnet20.onnx"), input_names=["input"], output_names=["output"],
        dynamic_axes={"input": {0: "N"}, "output": {0: "N"}}, opset_version=17, dynamo=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
