"""One fused model on one input, as the commands about a single model take it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import inception_fused

from . import cases
from .peers import FORMATS


@dataclass(frozen=True)
class Subject:
    """``model`` is fused and in eval mode, ``x`` its input in the memory format asked for."""

    title: str
    model: nn.Module
    x: Tensor


def subject(model: str, batch: int, memory_format: str, threads: int) -> Subject:
    """The fused model of a name and its input; sets torch's number of threads.

    Raises:
        ValueError: naming the option that is wrong.
    """
    if memory_format not in FORMATS:
        raise ValueError(f"--memory-format must be nchw or channels_last, got {memory_format!r}")
    if not 0 < batch <= 4096:
        raise ValueError(f"--batch must be from 1 to 4096, got {batch}")
    if threads < 0:
        raise ValueError(f"--threads must be at least 0, got {threads}")
    case = cases.find(model)
    if threads:
        torch.set_num_threads(threads)
    layout = FORMATS[memory_format]
    fused = inception_fused.fuse(case.build().to(memory_format=layout))
    return Subject(case.title, fused, case.inputs(batch).contiguous(memory_format=layout))
