"""The contestants: ways to run one model, each a row of :data:`PEERS`."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import inception_fused
from inception_fused.fusion import fusion_of

from . import engines

Run = Callable[[], Tensor]
"""One inference on the input given before; returns the output."""

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Peer:
    """A way to run a model. torch.compile is given constant weights ("freezing"), its best here.

    Attributes:
        make: takes (model in eval mode, float32 input, number of threads), owns the model from
            then on, and prepares it for that input.
        memory_format: fixed, or None if the user's choice is taken.
        needs: modules that must be importable.
        install: how to get them.
    """

    title: str
    make: Callable[[nn.Module, Tensor, int], Run]
    memory_format: str | None = None
    needs: tuple[str, ...] = ()
    install: str = ""

    def missing(self) -> str | None:
        """What is not installed and how to get it; None if all is there."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)} ({self.install})" if absent else None


@dataclass(frozen=True)
class Contestant:
    """A peer in a memory format."""

    peer: str
    memory_format: str

    @property
    def title(self) -> str:
        row = PEERS[self.peer]
        if row.memory_format is None and self.memory_format == "nchw":
            return f"{row.title} NCHW"
        return row.title

    def prepare(self, model: nn.Module, x: Tensor, threads: int) -> Run:
        """Runs under no_grad; the model is converted to the memory format, and owned."""
        layout = FORMATS[self.memory_format]
        model = model.to(memory_format=layout)
        return PEERS[self.peer].make(model, x.contiguous(memory_format=layout), threads)


def contestants(names: list[str], memory_format: str) -> list[Contestant]:
    """The peers of these names in the chosen format ("both": each free one twice)."""
    wanted = ["channels_last", "nchw"] if memory_format == "both" else [memory_format]
    found = []
    for name in names:
        fixed = PEERS[name].memory_format
        found += [Contestant(name, f) for f in ([fixed] if fixed else wanted)]
    return found


def _eager(model: nn.Module, x: Tensor, threads: int) -> Run:
    return lambda: model(x)


def _fused(model: nn.Module, x: Tensor, threads: int) -> Run:
    fused = inception_fused.fuse(model)
    fused(x)
    taken = [fusion for m in fused.modules() if (fusion := fusion_of(m)) is not None]
    if not taken:
        raise ValueError("no Inception module was found in the model")
    for fusion in taken:
        if fusion.taken == "original":
            raise ValueError(f"a fused module took the original path: {fusion.reason}")
    return lambda: fused(x)


def _folded(model: nn.Module, x: Tensor, threads: int) -> Run:
    from torch.fx.experimental.optimization import fuse

    layout = torch.channels_last
    if x.is_contiguous():
        layout = torch.contiguous_format
    return _eager(fuse(model).to(memory_format=layout), x, threads)


def _compile(model: nn.Module, x: Tensor, threads: int) -> Run:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA runtime"
    compiled = torch.compile(model, dynamic=False, options={"freezing": True})
    return lambda: compiled(x)


_ONNX = ("onnx", "onnxscript")
PEERS: dict[str, Peer] = {
    "fused": Peer("fused", _fused),
    "eager": Peer("eager NCHW", _eager, "nchw"),
    "channels_last": Peer("eager channels_last", _eager, "channels_last"),
    "folded": Peer("eager BN folded", _folded),
    "compile": Peer("torch.compile", _compile),
    "onnxruntime": Peer(
        "ONNX Runtime",
        engines.onnxruntime,
        "nchw",
        (*_ONNX, "onnxruntime"),
        "pip install onnx onnxscript onnxruntime",
    ),
    "openvino": Peer("OpenVINO", engines.openvino, "nchw", ("openvino",), "pip install openvino"),
    "ncnn": Peer("ncnn", engines.ncnn, "nchw", ("ncnn", "pnnx"), "pip install ncnn pnnx"),
}
REFERENCE = "eager"
"""The peer that every ratio and difference is relative to."""
