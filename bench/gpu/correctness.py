"""Every module of GoogLeNet on a back end against float64, and twice with the same bits.

A result may be twice as far from float64 as torch's own at the same precision on the same device;
an eighth as far where torch computes in TF32 and we as three products of bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from inception_fused.backends import Backend
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

from ..runner import describe
from .arguments import FORMATS, OF_CUDA, PRECISIONS, Arguments, precision, precisions
from .job import Job
from .record import FAILED, OK, SKIPPED, Row

STAGE = "correctness"
FACTOR = 2.0
FACTOR_OF_TF32 = 1 / 8
SLACK = 8 * torch.finfo(torch.float32).eps  # stock may sum in blocks, which rounds less
REPEATS = 3
BATCH = 2


def name_of(backend: str, module: str, precision_: str, fmt: str) -> str:
    return f"{backend} {module} {precision_} {fmt}"


def check(
    backend: Backend, device: str, module: str, precision_: str, fmt: str, batch: int = BATCH
) -> Row:
    """Figures: error of the back end and of torch, relative to the largest output in float64."""
    row = Row(STAGE, name_of(backend.name, module, precision_, fmt))
    size = GOOGLENET_SIZE[module]
    given = Arguments.random(GOOGLENET[module], (batch, size, size))
    exact = given.exact(PRECISIONS[precision_])
    scale = float(exact.abs().max())

    def error(y: torch.Tensor) -> float:
        return float((y.cpu().double() - exact).abs().max()) / scale

    try:
        with precision(precision_) as dtype, torch.no_grad():
            a = given.to(device, dtype, FORMATS[fmt])
            reason = backend.unavailable() or backend.why_not(a.plan, a.x)
            if reason:
                row.status, row.detail = SKIPPED, reason
                return row
            stock = error(a.run())
            packed = backend.pack(a.plan, a.weights, a.biases, tuning=backend.tuning(a.plan, a.x))
            outputs = [backend.run(a.plan, a.x, packed).clone() for _ in range(REPEATS)]
    except Exception as failure:
        row.status, row.detail = FAILED, describe(failure)
        return row
    ours = error(outputs[0])
    factor = FACTOR_OF_TF32 if precision_ in OF_CUDA else FACTOR
    allowed = factor * stock + SLACK
    row.figures = {"error": ours, "stock": stock, "allowed": allowed}
    row.status = OK
    if not ours <= allowed:
        row.status, row.detail = FAILED, f"error {ours:.2e}, allowed {allowed:.2e}"
    elif not all(torch.equal(outputs[0], other) for other in outputs[1:]):
        row.status, row.detail = FAILED, "not the same bits every time"
    elif outputs[0].is_contiguous(memory_format=FORMATS[fmt]) is False:
        row.status, row.detail = FAILED, f"the output is not {fmt}"
    return row


def jobs(backends: list[Backend], device: str) -> Iterator[Job]:
    """All modules, precisions and formats; the back ends one after the other."""
    for backend in backends:
        for precision_ in precisions(backend.name):
            for module in GOOGLENET:
                for fmt in FORMATS:
                    yield Job(
                        STAGE,
                        name_of(backend.name, module, precision_, fmt),
                        partial(check, backend, device, module, precision_, fmt),
                    )
