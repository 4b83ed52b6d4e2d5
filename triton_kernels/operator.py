"""The operators of the Triton back end, ``torch.ops.inception_fused.triton_*``.

They are declared here, not in C++: a package without native libraries has them too, and a CUDA
tensor can choose between these kernels and those of ``inception_fused.run``. Triton is imported at
the first call.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..plan import IN, OUT, Plan
from . import choose, problem, program
from .pack import layout, pack

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Types of x. float32 products are TF32 where torch's convolutions may use it."""

OLDEST = (8, 0)
"""The CUDA compute capability from which on the kernels are tried."""
