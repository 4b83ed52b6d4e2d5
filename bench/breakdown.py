"""Each step of a module's plan, timed alone, as a plan of one step on the back end of choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from inception_fused.backends import choose
from inception_fused.lower import lower
from inception_fused.plan import IN, OUT, Destination, Plan, Slice, Step
from inception_fused.spec import Spec

from . import device, runner

ROUNDS = 3


def measure(spec: Spec, x: Tensor) -> dict[str, float]:
    """Median ms of every step, by its name, for an input of the shape, dtype and device of x.

    On a GPU it is the device's own time. Weights and values are random.
    """
    plan = lower(spec)
    sizes = plan.sizes(x.shape[2], x.shape[3])
    calls = {name(s): _call(s, sizes[s.src.buffer], x) for s in plan.steps}
    samples: dict[str, runner.Samples] = {}
    gpu = device.Clock() if x.is_cuda else None
    turn = gpu.turn if gpu else runner.host_turn
    for _ in runner.measure(calls, samples, 0.0, ROUNDS, turn):
        pass
    times = gpu.warm if gpu else {key: s.all for key, s in samples.items()}
    return {key: runner.percentile(times[key], 50) for key in calls if times.get(key)}


def name(step: Step) -> str:
    """Like "1x1 192 to 64+96+16": the kernel, after a pool if one is folded in, and the widths."""
    kernel = f"{step.window.kernel[0]}x{step.window.kernel[1]}"
    pool = "pool + " if step.pre else ""
    widths = "+".join(str(d.slice.channels) for d in step.dst)
    return f"{pool}{kernel} {step.src.channels} to {widths}"


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


def _call(step: Step, size: tuple[int, int], like: Tensor) -> Callable[[], Tensor]:
    plan = alone(step)
    generator = torch.Generator().manual_seed(0)
    made = partial(torch.randn, generator=generator)
    x = (
        made(like.shape[0], plan.in_channels, *size)
        .to(like)
        .contiguous(memory_format=torch.channels_last)
    )
    weights = [made(c.weight_shape).to(like) for c in plan.convolutions()]
    biases = [made(len(w)).to(like) for w in weights]
    backend = choose(plan, x).backend
    packed = backend.pack(plan, weights, biases, backend.tuning(plan, x))
    return lambda: backend.run(plan, x, packed)
