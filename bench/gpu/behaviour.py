"""What a back end must do on a GPU beside computing right: CUDA graphs, streams, threads, launches.

Each check gives figures, and raises :class:`Wrong` with what is wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from inception_fused.backends import Backend
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

from .arguments import FORMATS, PRECISIONS, Arguments, precision
from .job import Job
from .record import FAILED, OK, SKIPPED, Row

STAGE = "behaviour"
MODULE = "4a"
BATCH = 2
THREADS = 4
CALLS = 20  # of each thread
LAUNCHES = 2  # of a v1 module
BUSY = 2048  # rows of the matrices whose products keep a stream busy for milliseconds


class Wrong(Exception):
    """A check that failed; the message says what was seen."""


class Subject:
    """A module on a back end with its weights packed, and inputs of any seed."""

    def __init__(self, backend: Backend, device: str, precision_: str, module: str = MODULE):
        self.backend, self.device, self.dtype = backend, device, PRECISIONS[precision_]
        self.size = GOOGLENET_SIZE[module]
        self.spec = GOOGLENET[module]
        given = Arguments.random(self.spec, (BATCH, self.size, self.size))
        a = given.to(device, self.dtype, FORMATS["channels_last"])
        self.plan, self.x = a.plan, a.x
        self.reason = backend.unavailable() or backend.why_not(a.plan, a.x)
        if self.reason is None:
            tuning = backend.tuning(a.plan, a.x)
            self.packed = backend.pack(a.plan, a.weights, a.biases, tuning=tuning)

    def input(self, seed: int) -> Tensor:
        given = Arguments.random(self.spec, (BATCH, self.size, self.size), seed)
        return given.to(self.device, self.dtype, FORMATS["channels_last"]).x

    def __call__(self, x: Tensor) -> Tensor:
        return self.backend.run(self.plan, x, self.packed)


def same(name: str, got: Tensor, expected: Tensor) -> None:
    if not torch.equal(got, expected):
        apart = float((got.double() - expected.double()).abs().max())
        raise Wrong(f"{name}: differs by {apart:.1e} from a plain call")


def graph(subject: Subject) -> dict[str, Any]:
    """Captured once, a graph gives the right output for every input copied in before a replay."""
    x = subject.x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        subject(x)  # what happens once, as compiling a kernel, may not be captured
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        output = subject(x)
    for seed in range(1, 5):  # it was captured with the input of seed 0
        new = subject.input(seed)
        x.copy_(new)
        captured.replay()
        same(f"replay {seed}", output, subject(new))
    return {"replays": 4}


def side_stream(subject: Subject) -> dict[str, Any]:
    """Work goes to the current stream: behind what that stream does, not behind the default's."""
    expected = [subject(subject.input(seed)) for seed in range(4)]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    outputs = []
    with torch.cuda.stream(stream):
        for seed in range(4):
            x = torch.empty_like(subject.x).fill_(float("nan"))
            busy = torch.ones(BUSY, BUSY, device=subject.device)
            for _ in range(8):
                busy = busy @ busy * 1e-4  # so that the copy is still to come when we are called
            x.copy_(subject.input(seed), non_blocking=True)
            outputs.append(subject(x))
    stream.synchronize()
    for seed, (got, wanted) in enumerate(zip(outputs, expected, strict=True)):
        same(f"input {seed}", got, wanted)
    return {"inputs": 4}


def threads(subject: Subject) -> dict[str, Any]:
    """Several threads, each on a stream of its own where there are streams, with one pack."""
    inputs = [subject.input(seed) for seed in range(THREADS)]
    expected = [subject(x) for x in inputs]
    errors: list[str] = []
    gate = threading.Barrier(THREADS)

    def call(number: int) -> None:
        try:
            with torch.no_grad():
                gate.wait(timeout=60)
                for _ in range(CALLS):
                    same(f"thread {number}", subject(inputs[number]), expected[number])
        except Exception as error:
            errors.append(str(error))

    def work(number: int) -> None:
        if subject.device == "cpu":
            return call(number)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            call(number)
            stream.synchronize()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise Wrong("; ".join(errors))
    return {"threads": THREADS, "calls": CALLS}


def kernels_of(call: Callable[[], object]) -> list[str]:
    """Names of the kernels, copies and fills that a call starts on the GPU."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        call()
        torch.cuda.synchronize()
    cuda = torch._C._autograd.DeviceType.CUDA
    return [event.name for event in trace.events() if event.device_type == cuda]


def launches(subject: Subject) -> dict[str, Any]:
    """Two kernels per module, nothing else; torch.profiler counts."""
    names = kernels_of(lambda: subject(subject.x))
    if len(names) != LAUNCHES:
        raise Wrong(f"{len(names)} launches instead of {LAUNCHES}: {', '.join(names)}")
    return {"launches": len(names)}


CHECKS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "launches": launches,
    "graph": graph,
    "side stream": side_stream,
    "threads": threads,
}


def check(
    backend: Backend, device: str, precision_: str, name: str, run: Callable[..., dict[str, Any]]
) -> Row:
    row = Row(STAGE, f"{backend.name} {name} {precision_}")
    with precision(precision_), torch.no_grad():
        subject = Subject(backend, device, precision_)
        if subject.reason:
            row.status, row.detail = SKIPPED, subject.reason
            return row
        try:
            row.figures, row.status = run(subject), OK
        except Wrong as error:
            row.status, row.detail = FAILED, str(error)
    return row


def jobs(backends: list[Backend], device: str) -> Iterator[Job]:
    """Every check of every back end at the two kinds of products."""
    for backend in backends:
        for precision_ in ("float16", "tf32"):
            for name, run in CHECKS.items():
                title = f"{backend.name} {name} {precision_}"
                yield Job(STAGE, title, partial(check, backend, device, precision_, name, run))
