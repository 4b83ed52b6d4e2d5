"""Ways to run a model on a GPU: ours on each back end, stock, compiled; plainly or as a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import inception_fused
from inception_fused.fusion import fusion_of

from .arguments import FORMATS

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Contestant:
    """A way to run a model.

    Attributes:
        backend: of ours, that every fused module must take; None for stock.
        mode: of torch.compile; None where nothing is compiled.
        graph: whether calls are replays of a CUDA graph captured once.
    """

    title: str
    memory_format: str
    backend: str | None = None
    mode: str | None = None
    graph: bool = False

    def prepare(self, model: nn.Module, x: Tensor) -> Run:
        """A call that gives the output for x, which is on the model's device; owns the model."""
        model = model.to(memory_format=FORMATS[self.memory_format])
        x = x.contiguous(memory_format=FORMATS[self.memory_format])
        if self.backend is not None:
            _fuse(model, x, self.backend)
        forward: Callable[[Tensor], Tensor] = model
        if self.mode is not None:
            forward = torch.compile(model, dynamic=False, mode=self.mode)
        if self.graph:
            return captured(forward, x)
        return lambda: forward(x)


OURS = (
    Contestant("cuda", "channels_last", "cuda"),
    Contestant("cuda graph", "channels_last", "cuda", graph=True),
    Contestant("cuda NCHW", "nchw", "cuda"),
    Contestant("triton", "channels_last", "triton"),
    Contestant("triton graph", "channels_last", "triton", graph=True),
)
STOCK = (
    Contestant("eager NCHW", "nchw"),
    Contestant("eager channels_last", "channels_last"),
    Contestant("eager graph", "channels_last", graph=True),
)
COMPILED = tuple(
    Contestant(f"compile {mode}", "channels_last", mode=mode)
    for mode in ("default", "reduce-overhead", "max-autotune")
)


def captured(forward: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    """A replay of one call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(x)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _fuse(model: nn.Module, x: Tensor, backend: str) -> None:
    inception_fused.fuse(model, backend=backend)
    model(x)
    taken = [fusion for m in model.modules() if (fusion := fusion_of(m)) is not None]
    if not taken:
        raise ValueError("no Inception module was found in the model")
    for fusion in taken:
        if fusion.taken != backend:
            raise ValueError(f"a module took {fusion.taken}: {fusion.reason}")
