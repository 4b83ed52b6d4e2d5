"""A training step of fused models beside stock: the activations that it keeps, and its time.

    python -m inception_fused.bench.training [--batch 32] [--rounds 7] [3a 5b torchvision ...]

Memory is counted, not sampled: the bytes of all distinct storages that autograd holds between the
forward and the backward pass, with the output and without the input, parameters and buffers. Time
is that of forward and backward, in channels_last, the two taking turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import inception_fused
from inception_fused.spec import GOOGLENET

from . import cases


@dataclass(frozen=True)
class Result:
    """Stock's and the fused model's bytes kept, and medians in ms."""

    kept: tuple[int, int]
    ms: tuple[float, float]


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd holds after a forward pass; x, parameters and buffers not counted."""
    storages: dict[int, tuple[int, Tensor]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        note(model(x))
    for tensor in (x, *model.parameters(), *model.buffers()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(size for size, _ in storages.values())


def step_ms(model: nn.Module, x: Tensor) -> float:
    """Time of one forward and backward pass."""
    start = time.perf_counter()
    y = model(x)
    y.backward(torch.ones_like(y))
    return 1000 * (time.perf_counter() - start)


def measure(name: str, batch: int, rounds: int) -> Result:
    """One model of :mod:`cases`, in training mode.

    Raises:
        RuntimeError: a fused module took the original path.
    """
    case = cases.find(name)
    stock = case.build().requires_grad_(True).to(memory_format=torch.channels_last)
    fused = inception_fused.fuse(copy.deepcopy(stock))
    models = (stock.train(), fused.train())
    x = case.inputs(batch).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(name in GOOGLENET)  # inside a network modules have to give it
    kept = (kept_bytes(stock, x), kept_bytes(fused, x))
    taken = [n for n, m in fused.named_modules() if isinstance(m, inception_fused.FusedInception)]
    lines = {line.name: line for line in inception_fused.explain(fused).lines}
    for line in (lines[n] for n in taken):
        if line.backend != "training":
            raise RuntimeError(str(line))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for model, found in zip(models, times, strict=True):
            found.append(step_ms(model, x))
    return Result(kept, (statistics.median(times[0][1:]), statistics.median(times[1][1:])))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Training steps of fused models beside stock.")
    parser.add_argument("models", nargs="*", default=[*GOOGLENET, "torchvision"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args(arguments)
    console = Console()
    table = Table(title=f"training step, batch {chosen.batch}, {torch.get_num_threads()} threads")
    for column in ("model", "kept, MiB", "fused", "ratio", "ms", "fused", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in chosen.models:
        result = measure(name, chosen.batch, chosen.rounds)
        mib = [size / 2**20 for size in result.kept]
        table.add_row(
            name,
            *(f"{v:.1f}" for v in mib),
            f"{mib[1] / mib[0]:.2f}",
            *(f"{v:.1f}" for v in result.ms),
            f"{result.ms[1] / result.ms[0]:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
