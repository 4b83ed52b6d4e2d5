"""Whether there is a GPU to check, and for which architecture its code must be."""

from __future__ import annotations

import torch


def missing() -> str | None:
    """Why there is no CUDA device to check; None if there is one."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


def arch() -> str:
    """Of the current device, as nvcc names it: "90a" for compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
