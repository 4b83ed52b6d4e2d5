"""Cases and their times: every contestant checked against float64 first, then timed in turns."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inception_fused.lower import lower
from inception_fused.models import GoogLeNet
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

from .. import cases, kernelbench, runner
from ..device import Clock
from ..runner import describe, percentile
from . import choices, correctness
from .arguments import precision
from .contestants import COMPILED, OURS, STOCK, Contestant
from .job import Job
from .record import FAILED, OK, Record, Row

STAGE = "timings"
BATCHES = (1, 8, 64, 256)
CHECKED = 2  # images that are compared with float64
SECONDS = 1.5  # of timing, per case
TURN_S = 0.004  # of a contestant's calls in a row
KERNELBENCH_TOLERANCE = 1e-4  # absolute and relative, of an output against the stock model's


@dataclass(frozen=True)
class Case:
    """A model on the CPU in float32 and its input; ``flops``: of direct convolution, in all."""

    name: str
    precision: str
    build: Callable[[], nn.Module]
    input: Callable[[], Tensor]
    contestants: tuple[Contestant, ...]
    flops: int = 0
    module: tuple[str, int] | None = None  # of GoogLeNet, and its batch


def module_case(name: str, batch: int, precision_: str, compiled: bool = False) -> Case:
    found, size = cases.find(name), GOOGLENET_SIZE[name]
    title = f"{name} b{batch} {precision_}" + (" with torch.compile" if compiled else "")
    return Case(
        title,
        precision_,
        found.build,
        partial(found.inputs, batch),
        (*OURS, *STOCK, *(COMPILED[:1] if compiled else ())),
        2 * lower(GOOGLENET[name]).macs(batch, size, size),
        (name, batch),
    )


def network_case(batch: int, precision_: str) -> Case:
    """torchvision's GoogLeNet where it is installed, else the paper's; calibrated on the input."""
    has = importlib.util.find_spec("torchvision") is not None

    def make(images: int = batch) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(images, 3, cases.IMAGE, cases.IMAGE, generator=generator)

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if not has:
                return GoogLeNet().eval().requires_grad_(False)
            from torchvision.models import googlenet

            model = googlenet(weights=None, aux_logits=False, init_weights=True)
            return cases.calibrate(model, make(8))

    name = "torchvision" if has else "paper"
    contestants = (*OURS, *STOCK, *COMPILED)
    return Case(f"{name} b{batch} {precision_}", precision_, build, make, contestants)


def kernelbench_case(
    title: str,
    make: Callable[[], nn.Module],
    inputs: Callable[[int], Tensor],
    flops: int = 0,
) -> Case:
    """As published: float32, contiguous, torch's default switches, which allow TF32."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make().eval().requires_grad_(False)

    inputs_of_ten = partial(inputs, kernelbench.BATCH)
    return Case(title, "tf32", build, inputs_of_ten, (*OURS, *STOCK, *COMPILED), flops)


def all_cases() -> list[Case]:
    """Those that the goals are about first."""
    flops6 = 2 * lower(GOOGLENET["4a"]).macs(kernelbench.BATCH, cases.IMAGE, cases.IMAGE)
    found = [
        module_case("3a", 1, "float16"),
        network_case(1, "float16"),
        kernelbench_case("KernelBench L3/6", kernelbench.module, kernelbench.activations, flops6),
        kernelbench_case("KernelBench L3/7", kernelbench.Network, kernelbench.images),
        network_case(256, "float16"),
    ]
    for compiled in (False, True):
        for precision_ in ("float16", "tf32"):
            for batch in BATCHES:
                found += [module_case(name, batch, precision_, compiled) for name in GOOGLENET]
    return list({case.name: case for case in found}.values())


def blocked(record: Record, backend: str, precision_: str) -> str | None:
    """Why a back end's kernels must not be timed at a precision; None if they may."""
    for row in record.failures():
        words = row.name.split()
        of_kernels = row.stage == correctness.STAGE and words[0] == backend
        if of_kernels and words[2] == precision_:
            return f"{row.name} is wrong: {row.detail}"
        if row.stage == "conformance" and backend == "cuda":
            return f"{row.name}: {row.detail}"
    return None


def measure(
    case: Case, record: Record, device: str, clock: Clock | None, seconds: float = SECONDS
) -> Row:
    """A row with, by contestant, errors and times in ms, or why there are none.

    Failed if a contestant of ours is wrong or cannot run. Times are those of device.Clock, which is
    given for a GPU: latency, host, warm and cold; without it latency alone.
    """
    row = Row(STAGE, case.name, OK, figures={"flops": case.flops, "contestants": {}})
    found: dict[str, dict[str, Any]] = row.figures["contestants"]
    with precision(case.precision) as dtype, torch.no_grad():
        torch._dynamo.reset()
        plain = case.build()
        x = case.input().to(device)
        exact = _exact(plain, x[:CHECKED].to(dtype), device)
        model = plain.to(device, dtype)
        x = x.to(dtype)
        stock = model(x)
        allowed = correctness.FACTOR * _error(stock, exact) + correctness.SLACK
        calls: dict[str, runner.Call] = {}
        for contestant in case.contestants:
            figures = found[contestant.title] = {"backend": contestant.backend}
            reason = contestant.backend and blocked(record, contestant.backend, case.precision)
            if reason:
                figures["failure"] = f"not timed: {reason}"
                continue
            try:
                call = contestant.prepare(copy.deepcopy(model), x)
                output = call().clone()
            except Exception as error:
                figures["failure"] = describe(error)
                continue
            figures["error"] = _error(output, exact)
            figures["outside_1e-4"] = _outside(output, stock)
            if not figures["error"] <= allowed and contestant.backend:
                figures["failure"] = f"error {figures['error']:.2e}, allowed {allowed:.2e}"
                continue
            calls[contestant.title] = call
        samples: dict[str, runner.Samples] = {}
        turn = clock.turn if clock else runner.host_turn
        for _ in runner.measure(calls, samples, seconds, None, turn, TURN_S):
            pass
        for title, taken in samples.items():
            if taken.failure:
                found[title]["failure"] = taken.failure
                continue
            kinds = {"latency": taken.all}
            if clock:
                kinds |= {kind: getattr(clock, kind)[title] for kind in ("host", "warm", "cold")}
            for kind, values in kinds.items():
                for percent in (10, 50, 90):
                    found[title][f"{kind}_p{percent}"] = percentile(values, percent)
    wrong = [t for t, f in found.items() if "failure" in f and f["backend"] == "cuda"]
    if wrong:
        row.status = FAILED
        row.detail = "; ".join(f"{title}: {found[title]['failure']}" for title in wrong)
    return row


def _exact(model: nn.Module, x: Tensor, device: str) -> Tensor:
    """In float64, for weights and inputs rounded to x's dtype."""
    rounded = copy.deepcopy(model).to(x.dtype).to(device, torch.float64)
    y: Tensor = rounded(x.double())
    return y.cpu()


def _error(y: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest value; of the first images."""
    apart = (y[: len(exact)].cpu().double() - exact).abs().max()
    return float(apart / exact.abs().max().clamp_min(1e-30))


def _outside(y: Tensor, stock: Tensor) -> float:
    """Share of the outputs that KernelBench's tolerance refuses."""
    t = KERNELBENCH_TOLERANCE
    return float((~torch.isclose(y.float(), stock.float(), rtol=t, atol=t)).float().mean())


def predicted(case: Case, record: Record) -> float | None:
    """What choose.h expects of the two launches together, in us; None where it cannot be asked."""
    if case.module is None or not (choices.ROOT / "csrc" / "cuda").is_dir():
        return None
    sm = int(record.device["capability"].replace(".", ""))
    math = {"float16": "Half", "tf32": "Tf32"}[case.precision]
    try:
        (launches,) = choices.launches([choices.Problem(*case.module, sm, math)])
    except (RuntimeError, OSError):  # no compiler
        return None
    return sum(launch.nanoseconds for launch in launches) / 1000


def jobs(record: Record, device: str) -> Iterator[Job]:
    """All cases."""

    def run(case: Case) -> Row:
        row = measure(case, record, device, Clock())
        row.figures["predicted_us"] = predicted(case, record)
        return row

    for case in all_cases():
        seconds = 40.0 if any(c.mode for c in case.contestants) else 8.0
        yield Job(STAGE, case.name, partial(run, case), seconds=seconds)
