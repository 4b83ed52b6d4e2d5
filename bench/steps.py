"""What each step of a plan takes, measured as a plan of its own.

The time of a step inside its module cannot be read without slowing the module down, so every step
runs alone, through the same operator: a plan of one step whose input is a channels-last tensor and
whose destinations lie side by side. What differs from the whole: its input is written by nobody
just before, a direct convolution copies it once into a padded buffer, and threads start and end
with the step. All steps and the whole take turns in the order of the plan, so that their weights
are as cold as in the model; the sum of the steps beside the whole shows what the method costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inception_fused.backends import Backend, Tuning
from inception_fused.fusion import Fusion
from inception_fused.medians import LEAST, Interval, interval
from inception_fused.ops import cpu_pack_size
from inception_fused.plan import IN, OUT, Destination, Plan, Slice, Step

from . import device


@dataclass(frozen=True)
class StepTime:
    """A step: number in its plan, ms with confidence interval, operations and bytes of one call.

    ``flops`` are those of direct convolution, two per multiply-add. ``bytes`` are those of the
    slices read and written and of the packed weights, each once. ``algorithm`` is what the back
    end's tuning says.
    """

    number: int
    step: Step
    ms: Interval
    flops: int
    bytes: int
    algorithm: str

    @property
    def gflops(self) -> float:
        """10**9 operations a second at the median."""
        return self.flops / self.ms.median / 1e6


@dataclass(frozen=True)
class Profile:
    """The steps of one plan and the whole, measured in the same rounds."""

    name: str
    backend: str
    plan: Plan
    batch: int
    size: tuple[int, int]
    steps: tuple[StepTime, ...]
    whole: Interval
    tuning: Tuning

    @property
    def sum_ms(self) -> float:
        return sum(s.ms.median for s in self.steps)


def measure(
    parts: Sequence[tuple[str, Fusion, Backend, Tuning, Tensor]], seconds: float
) -> list[Profile]:
    """Times every step of every part and the parts as a whole, in turn, for about ``seconds``.

    On a GPU it is the device's own time.

    Args:
        parts: name, what is known of a fused module, its back end and tuning, an input; all on
            one device. On a GPU every step must have weights.
    """
    calls = [_calls(fusion, backend, tuning, x) for _, fusion, backend, tuning, x in parts]
    times: list[list[list[float]]] = [[[] for _ in group] for group in calls]
    clock = _device_clock() if any(x.is_cuda for *_, x in parts) else _host_ms
    end, done = time.perf_counter() + seconds, -1  # the first round warms up
    while done < LEAST or time.perf_counter() < end:
        for group, kept in zip(calls, times, strict=True):
            for call, values in zip(group, kept, strict=True):
                taken = clock(call.run)
                if done >= 0:
                    values.append(taken)
        done += 1
    return [
        _profile(part, group, kept) for part, group, kept in zip(parts, calls, times, strict=True)
    ]


def alone(step: Step) -> Plan:
    """A plan of this step only: it reads the input, its destinations are the output in turn."""
    targets = []
    offset = weight = 0
    for d in step.dst:
        slice_ = Slice(OUT, offset, d.slice.channels)
        targets.append(Destination(slice_, weight if d.weight >= 0 else -1, d.activation))
        offset += d.slice.channels
        weight += d.weight >= 0
    src = Slice(IN, 0, step.src.channels)
    return Plan((src.channels, offset), (replace(step, src=src, dst=tuple(targets), wave=0),))


def _host_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _device_clock() -> Callable[[Callable[[], object]], float]:
    gpu = device.Clock()

    def ms(call: Callable[[], object]) -> float:
        gpu.turn("", call, 1)
        return gpu.warm[""][-1]

    return ms


@dataclass(frozen=True)
class _Call:
    """A prepared plan; ``weight_bytes`` are those of its pack."""

    backend: Backend
    plan: Plan
    x: Tensor
    packed: list[Tensor]

    def run(self) -> Tensor:
        return self.backend.run(self.plan, self.x, self.packed)

    @property
    def weight_bytes(self) -> int:
        return sum(p.nbytes for p in self.packed) if self.plan.convolutions() else 0


def _calls(fusion: Fusion, backend: Backend, tuning: Tuning, x: Tensor) -> list[_Call]:
    """Of each step, and of the whole as the last one."""
    weights, biases = fusion.folded(x.dtype)
    plan = fusion.plan
    sizes = plan.sizes(x.shape[2], x.shape[3])
    calls = []
    for number, step in enumerate(plan.steps):
        one = alone(step)
        shape = (x.shape[0], step.src.channels, *sizes[step.src.buffer])
        generator = torch.Generator().manual_seed(number)
        source = torch.randn(shape, generator=generator, dtype=x.dtype).relu()
        source = source.to(x.device).contiguous(memory_format=torch.channels_last)
        own = [d.weight for d in step.dst if d.weight >= 0]
        chosen = tuning[number : number + 1]
        if own:
            packed = backend.pack(one, [weights[i] for i in own], [biases[i] for i in own], chosen)
        else:  # the operator knows its device by the weights; such a pack is all zeros
            packed = [source.new_zeros(cpu_pack_size(one, chosen))]
        calls.append(_Call(backend, one, source, packed))
    calls.append(_Call(backend, plan, x, backend.pack(plan, weights, biases, tuning)))
    return calls


def _profile(
    part: tuple[str, Fusion, Backend, Tuning, Tensor], calls: list[_Call], times: list[list[float]]
) -> Profile:
    name, fusion, backend, tuning, x = part
    steps = []
    for number, (call, values) in enumerate(zip(calls[:-1], times[:-1], strict=True)):
        batch, _, height, width = call.x.shape
        rows, columns = call.plan.sizes(height, width)[OUT]
        moved = call.x.nbytes + batch * call.plan.out_channels * rows * columns * x.element_size()
        steps.append(
            StepTime(
                number,
                fusion.plan.steps[number],
                interval(values),
                2 * call.plan.macs(batch, height, width),
                moved + call.weight_bytes,
                backend.describe(call.plan, tuning[number : number + 1]) if tuning else "",
            )
        )
    size = (x.shape[2], x.shape[3])
    whole = interval(times[-1])
    return Profile(name, backend.name, fusion.plan, len(x), size, tuple(steps), whole, tuning)
