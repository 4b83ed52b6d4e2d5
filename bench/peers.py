"""The contestants: ways to run one model, each a row of :data:`PEERS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from . import engines, stock, tensorrt
from .stock import Run

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Peer:
    """A way to run a model.

    Attributes:
        make: takes (model in eval mode, input, number of threads), owns the model from then on,
            and prepares it for that input.
        memory_format: fixed, or None if the user's choice is taken.
        needs: modules that must be importable.
        install: how to get them.
        devices: types of device that it runs on.
        dtypes: names in :data:`DTYPES` of the models that it takes.
        computes: name of the dtype that it computes in, None for the model's.
    """

    title: str
    make: Callable[[nn.Module, Tensor, int], Run]
    memory_format: str | None = None
    needs: tuple[str, ...] = ()
    install: str = ""
    devices: tuple[str, ...] = DEVICES
    dtypes: tuple[str, ...] = tuple(DTYPES)
    computes: str | None = None

    def missing(self) -> str | None:
        """What is not installed and how to get it; None if all is there."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)} ({self.install})" if absent else None

    def why_not(self, device: str, dtype: str) -> str | None:
        """What keeps it from running a model of that dtype on that type of device, or None."""
        reasons = [
            None if device in self.devices else f"runs on {' and '.join(self.devices)} only",
            None if dtype in self.dtypes else f"takes {' and '.join(self.dtypes)} models only",
            self.missing(),
        ]
        return "; ".join(reason for reason in reasons if reason) or None


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


_CPU, _GPU, _F32 = ("cpu",), ("cuda",), ("float32",)
_ONNX = ("onnx", "onnxscript")
PEERS: dict[str, Peer] = {
    "fused": Peer("fused", stock.fused),
    "fused_triton": Peer(
        "fused (Triton)",
        partial(stock.fused, backend="triton"),
        needs=("triton",),
        install="pip install triton",
        devices=_GPU,
    ),
    "fused_compile": Peer("fused + compile", stock.fused_compiled),
    "fused_int8": Peer("fused int8", stock.fused_int8, devices=_CPU, dtypes=_F32, computes="int8"),
    "fused_graph": Peer("fused + CUDA graph", stock.fused_graph, devices=_GPU),
    "eager": Peer("eager NCHW", stock.eager, "nchw"),
    "channels_last": Peer("eager channels_last", stock.eager, "channels_last"),
    "folded": Peer("eager BN folded", stock.folded),
    "compile": Peer("torch.compile", stock.compiled),
    "compile_overhead": Peer(
        "compile reduce-overhead",
        partial(stock.compiled, mode="reduce-overhead"),
        devices=_GPU,  # its CUDA graphs are all that differs from the default
    ),
    "compile_autotune": Peer("compile max-autotune", partial(stock.compiled, mode="max-autotune")),
    "graph": Peer("CUDA graph", stock.graph, devices=_GPU),
    "onnxruntime": Peer(
        "ONNX Runtime",
        engines.onnxruntime,
        "nchw",
        (*_ONNX, "onnxruntime"),
        "pip install onnx onnxscript onnxruntime",
        devices=_CPU,
        dtypes=_F32,
    ),
    "openvino": Peer(
        "OpenVINO",
        engines.openvino,
        "nchw",
        ("openvino",),
        "pip install openvino",
        devices=_CPU,
        dtypes=_F32,
    ),
    "openvino_bf16": Peer(
        "OpenVINO bf16",
        partial(engines.openvino, precision="bf16"),
        "nchw",
        ("openvino",),
        "pip install openvino",
        devices=_CPU,
        dtypes=("float32", "bfloat16"),
        computes="bfloat16",
    ),
    "ncnn": Peer(
        "ncnn",
        engines.ncnn,
        "nchw",
        ("ncnn", "pnnx"),
        "pip install ncnn pnnx",
        devices=_CPU,
        dtypes=_F32,
    ),
    "tensorrt": Peer(
        "TensorRT",
        tensorrt.engine,
        "nchw",
        (*_ONNX, "tensorrt"),
        "pip install onnx onnxscript tensorrt",
        devices=_GPU,
    ),
    "torch_tensorrt": Peer(
        "torch-tensorrt",
        tensorrt.through_torch,
        "nchw",
        ("torch_tensorrt",),
        "pip install torch-tensorrt",
        devices=_GPU,
    ),
}
REFERENCE = "eager"
"""The peer that every ratio and difference is relative to."""
