"""Ways to run a model on a GPU: ours on each back end, stock, compiled; plainly or as a graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .. import stock
from ..stock import Run
from .arguments import FORMATS


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
            stock.fused(model, x, 0, self.backend)  # in place
        if self.mode is not None:
            return stock.compiled(model, x, 0, self.mode)
        return (stock.graph if self.graph else stock.eager)(model, x, 0)


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
