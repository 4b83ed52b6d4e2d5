"""The operators of the Triton back end, ``torch.ops.inception_fused.triton_*``.

They are declared here and not in C++, because a package without native libraries has them too, and
because CUDA tensors have the CUDA kernels in ``inception_fused.run``. Declared in this way a call
costs a fraction of ``torch.library.custom_op``'s. Triton is imported at the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..ops import allows_tf32
from ..plan import Plan
from . import check, packing

_REMEMBERED = 512  # prepared programs

_library: Any = torch.library.Library("inception_fused", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("triton_pack(Tensor[] weights, Tensor[] biases, int[] plan) -> Tensor")
_library.define("triton_run(Tensor x, Tensor pack, int[] plan) -> Tensor")
_library.define("triton_run.out(Tensor x, Tensor pack, int[] plan, *, Tensor(a!) out) -> ()")

_programs: dict[Any, Any] = {}


def _pack(weights: Sequence[Tensor], biases: Sequence[Tensor], plan: Sequence[int]) -> Tensor:
    decoded = Plan.decode(plan)
    check.check_weights(decoded, weights, biases)
    return packing.pack(decoded, weights, biases)


def _run(x: Tensor, pack: Tensor, plan: Sequence[int], out: Tensor | None = None) -> Tensor:
    """The output, in ``out`` if it is given."""
    key = (
        tuple(plan),
        *(
            t if t is None else (t.shape, t.stride(), t.dtype, t.device, t.data_ptr() % 16)
            for t in (x, pack, out)
        ),
        x.dtype is torch.float32 and allows_tf32(),
        *(_apart(t, out) for t in (x, pack)),
    )
    program = _programs.get(key)
    if program is None:
        decoded = Plan.decode(plan)
        check.check_run(decoded, x, pack, out)
    if out is None:
        out = reference.empty_output(decoded, x) if program is None else program.new_output(x)
    if out.numel():
        with on(x.device):
            if program is None:
                execute: Any = check.load()
                program = execute.prepare(decoded, x, pack, out)
                if len(_programs) >= _REMEMBERED:
                    _programs.clear()
                _programs[key] = program
            program(x, pack, out)
    return out


def _apart(tensor: Tensor, out: Tensor | None) -> int | None:
    """Bytes between two tensors in one allocation, on which it depends whether they overlap."""
    if out is None or tensor.untyped_storage().data_ptr() != out.untyped_storage().data_ptr():
        return None
    return out.data_ptr() - tensor.data_ptr()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current device, if it is not."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _run_out(x: Tensor, pack: Tensor, plan: Sequence[int], *, out: Tensor) -> None:
    _run(x, pack, plan, out)


def _fake_pack(weights: Sequence[Tensor], biases: Sequence[Tensor], plan: Sequence[int]) -> Tensor:
    return weights[0].new_empty(packing.layout(_decode(plan)).size)


def _fake_run(x: Tensor, pack: Tensor, plan: Sequence[int]) -> Tensor:
    decoded = _decode(plan)
    torch._check(x.dim() == 4 and x.shape[1] == decoded.in_channels)
    return reference.empty_output(decoded, x)


def _fake_run_out(x: Tensor, pack: Tensor, plan: Sequence[int], *, out: Tensor) -> None:
    return None


def _decode(plan: Sequence[int]) -> Plan:
    return Plan.decode([int(i) for i in plan])


for _name, _real, _fake in (
    ("triton_pack", _pack, _fake_pack),
    ("triton_run", _run, _fake_run),
    ("triton_run.out", _run_out, _fake_run_out),
):
    _library.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"inception_fused::{_name}", _fake, lib=_library)


def pack(plan: Plan, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """The back end's pack; see :mod:`packing`."""
    return [torch.ops.inception_fused.triton_pack(list(weights), list(biases), plan.code)]


def run(plan: Plan, x: Tensor, packed: list[Tensor]) -> Tensor:
    """The back end's forward."""
    output: Tensor = torch.ops.inception_fused.triton_run(x, packed[0], plan.code)
    return output


def tune(plan: Plan, x: Tensor, packed: list[Tensor]) -> None:
    """Measures tiles for tensors like x, unless they were; the next call takes the fastest.

    Under the interpreter, where times mean nothing, it does nothing.
    """
    if check.interprets():
        return
    from .tune import tune

    tune(plan, x, packed[0])
    forget()


def forget() -> None:
    """Makes later calls look again for measured tiles."""
    _programs.clear()
