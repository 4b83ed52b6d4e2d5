"""PyTorch's own ways to run a model, and the fused model, which is one of them.

All take (model in eval mode, input, number of threads), own the model from then on and return a
call without arguments that gives the output. Preparation is not timed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

import inception_fused
from inception_fused.fusion import fusion_of

Run = Callable[[], Tensor]
"""One inference on the input given before; returns the output."""


def eager(model: nn.Module, x: Tensor, threads: int) -> Run:
    return lambda: model(x)


def fused(model: nn.Module, x: Tensor, threads: int, backend: str = "auto") -> Run:
    """ValueError if nothing was fused or a module took its original path."""
    return eager(_fuse(model, x, backend), x, threads)


def fused_compiled(model: nn.Module, x: Tensor, threads: int) -> Run:
    return compiled(_fuse(model, x), x, threads)


def fused_int8(model: nn.Module, x: Tensor, threads: int) -> Run:
    """With the input itself as the examples, which is as near to float32 as int8 gets."""
    return eager(_fuse(model, x, int8=x), x, threads)


def fused_graph(model: nn.Module, x: Tensor, threads: int) -> Run:
    return graph(_fuse(model, x), x, threads)


def folded(model: nn.Module, x: Tensor, threads: int) -> Run:
    """Batch norms folded into the convolutions before them."""
    from torch.fx.experimental.optimization import fuse

    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return eager(fuse(model).to(memory_format=layout), x, threads)


def compiled(model: nn.Module, x: Tensor, threads: int, mode: str = "default") -> Run:
    """torch.compile in one of its modes, with constant weights ("freezing"), its best here."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA runtime"
    options = {**torch._inductor.list_mode_options(mode), "freezing": True}
    optimised = torch.compile(model, dynamic=False, options=options)
    return lambda: optimised(x)


def graph(model: nn.Module, x: Tensor, threads: int) -> Run:
    """One CUDA graph of the whole forward. Each replay writes the same output tensor."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is set up lazily must not be captured
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        output: Tensor = model(x)

    def run() -> Tensor:
        captured.replay()
        return output

    return run


def _fuse(
    model: nn.Module, x: Tensor, backend: str = "auto", int8: Tensor | None = None
) -> nn.Module:
    model = inception_fused.fuse(model, backend=backend, int8=int8)
    model(x)
    taken = [fusion for m in model.modules() if (fusion := fusion_of(m)) is not None]
    if not taken:
        raise ValueError("no Inception module was found in the model")
    for fusion in taken:
        if fusion.taken == "original":
            raise ValueError(f"a fused module took the original path: {fusion.reason}")
    return model
