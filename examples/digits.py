"""Trains a small GoogLeNet on scikit-learn's handwritten digits, fuses it and compares the two.

    python examples/digits.py            # about a minute on two cores, at least 97 % correct
    python examples/digits.py --quick    # two passes over the data, for a look

Needs scikit-learn and rich. Exits with 1 if the accuracy is missed or a prediction changes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_digits
from torch import Tensor, nn

import inception_fused
from inception_fused.models import ConvUnit, Inception
from inception_fused.spec import Stage

GOAL = 0.97
"""Test accuracy that the full training must reach."""


@dataclass(frozen=True)
class Result:
    """Times are medians in ms for the whole test set as one batch."""

    accuracy: float
    changed: int
    stock_ms: float
    fused_ms: float


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, then the test's (the last 360 of 1797); images (N, 1, 8, 8)."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    return images[:-360], labels[:-360], images[-360:], labels[-360:]


def small_googlenet() -> nn.Sequential:
    """Stem, two modules at 8x8, two at 4x4, the paper's head; batch norm throughout."""
    return nn.Sequential(
        ConvUnit(1, Stage.conv(32, 3), batch_norm=True),
        Inception(32, 16, 24, 32, 8, 16, 16, batch_norm=True),
        Inception(80, 32, 32, 48, 8, 24, 24, batch_norm=True),
        nn.MaxPool2d(2),
        Inception(128, 48, 48, 64, 16, 32, 32, batch_norm=True),
        Inception(176, 64, 48, 96, 16, 48, 48, batch_norm=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(256, 10),
    )


def shifted(images: Tensor) -> Tensor:
    """Every image moved by up to one pixel in each direction, padded with zeros."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # (N, 1, 3, 3, 8, 8)
    count = len(images)
    rows, columns = torch.randint(3, (2, count))
    return windows[torch.arange(count), :, rows, columns]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, console: Console) -> None:
    """Trains in place with AdamW, one cycle of the learning rate and label smoothing."""
    batch = 64
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=steps)
        for epoch in range(epochs):
            order = torch.randperm(len(images))
            for chosen in order[: len(images) // batch * batch].split(batch):
                loss = loss_of(model(shifted(images[chosen])), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(
                    task,
                    advance=1,
                    description=f"epoch {epoch + 1}/{epochs}, loss {loss.item():.2f}",
                )


def medians(models: list[nn.Module], images: Tensor, repeats: int) -> list[float]:
    """Median time of each model in ms, the models taking turns."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(repeats):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            model(images)
            taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def run(epochs: int, repeats: int, console: Console) -> Result:
    """Trains, fuses a copy, compares on every test image and times both."""
    torch.manual_seed(0)
    train_images, train_labels, test_images, test_labels = load()
    stock = small_googlenet()
    train(stock, train_images, train_labels, epochs, console)
    stock.eval()
    fused = inception_fused.fuse(copy.deepcopy(stock))
    with torch.inference_mode():
        expected = stock(test_images).argmax(1)
        changed = int((fused(test_images).argmax(1) != expected).sum())
        accuracy = float((expected == test_labels).float().mean())
        stock_ms, fused_ms = medians([stock, fused], test_images, repeats)
    return Result(accuracy, changed, stock_ms, fused_ms)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training images")
    parser.add_argument("--quick", action="store_true", help="2 epochs, no goal for the accuracy")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")

    console = Console()
    start = time.perf_counter()
    result = run(2 if options.quick else options.epochs, 5 if options.quick else 21, console)
    console.print(f"test accuracy {result.accuracy:.2%} in {time.perf_counter() - start:.0f} s")
    console.print(f"predictions changed by fusing: {result.changed} of 360")
    console.print(
        f"360 images: stock {result.stock_ms:.2f} ms, fused {result.fused_ms:.2f} ms, "
        f"{result.stock_ms / result.fused_ms:.2f} times as fast"
    )
    good = result.changed == 0 and (options.quick or result.accuracy >= GOAL)
    if not good:
        console.print(f"[red]wanted no change and an accuracy of at least {GOAL:.0%}[/]")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
