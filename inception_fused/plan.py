"""The lowered form of a module: buffers and steps. Every back end runs exactly this.

Merging, slice layout, waves and the pool fold are decided once, by :func:`lower.lower`; no back
end knows the word "branch". :meth:`Plan.encode` gives the list of ints that crosses the operator
boundary; ``csrc/plan.h`` is the C++ mirror.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod

from .spec import Activation, Convolution, Kind, Response, Stage, Window

IN, OUT = 0, 1
"""Buffer indices of the module's input and output; scratch buffers follow."""

FORMAT = 2
"""First int of an encoded plan; changes when the layout of the list does."""

MAX_WEIGHTS = 2**40
"""Elements of all weights of a plan, at most, so that back ends may count in 64 bits."""


@dataclass(frozen=True, slots=True)
class Slice:
    """``channels`` channels of buffer ``buffer`` from channel ``offset`` on. Never a tensor."""

    buffer: int
    offset: int
    channels: int

    @property
    def end(self) -> int:
        return self.offset + self.channels


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a step writes. ``weight`` is the index of its convolution, -1 for anything else."""

    slice: Slice
    weight: int = -1
    activation: Activation = Activation.NONE


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool folded into the operand load of a pointwise step."""

    kind: Kind
    window: Window


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work: reads ``src``, writes every destination.

    A step with several destinations is several convolutions of one kernel over one source, merged
    into one matrix product. Steps of one wave may run at once; a wave waits for the one before.
    """

    kind: Kind
    window: Window
    src: Slice
    dst: tuple[Destination, ...]
    wave: int
    pre: Pool | None = None
    response: Response | None = None

    @property
    def out_channels(self) -> int:
        return sum(d.slice.channels for d in self.dst)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what it writes, in pixels, for a source of this size."""
        if self.pre:
            size = self.pre.window.output_size(size)
        return (1, 1) if self.kind is Kind.MEAN else self.window.output_size(size)


@dataclass(frozen=True)
class Plan:
    """``buffers[i]`` is the number of channels of buffer i; steps are sorted by wave.

    ``code`` is :meth:`encode` as a tuple, worked out once, for the operator's calls.
    """

    buffers: tuple[int, ...]
    steps: tuple[Step, ...]
    code: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", tuple(self.encode()))

    @property
    def in_channels(self) -> int:
        return self.buffers[IN]

    @property
    def out_channels(self) -> int:
        return self.buffers[OUT]

    @property
    def waves(self) -> tuple[tuple[Step, ...], ...]:
        return tuple(tuple(steps) for _, steps in groupby(self.steps, key=lambda s: s.wave))

    def convolutions(self) -> tuple[Convolution, ...]:
        """Shape of every weight, by weight index."""
        found = {
            d.weight: Convolution(s.src.channels, d.slice.channels, s.window.kernel)
            for s in self.steps
            for d in s.dst
            if d.weight >= 0
        }
        return tuple(found[i] for i in range(len(found)))

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of each buffer for an input of this size; (0, 0) for an unused one.

        Raises:
            ValueError: the image is smaller than a window, or two branches disagree in size.
        """
        sizes = [(0, 0)] * len(self.buffers)
        sizes[IN] = (height, width)
        for step in self.steps:
            size = step.output_size(sizes[step.src.buffer])
            for dst in step.dst:
                known = sizes[dst.slice.buffer]
                if known not in ((0, 0), size):
                    raise ValueError(
                        f"branches disagree in size for an input of {height}x{width} pixels: "
                        f"{known} and {size}"
                    )
                sizes[dst.slice.buffer] = size
        return tuple(sizes)

    def macs(self, batch: int, height: int, width: int) -> int:
        """Multiply-adds of direct convolution; nothing else is counted."""
        sizes = self.sizes(height, width)
        total = 0
        for step in self.steps:
            if step.kind.has_weight:
                rows, columns = sizes[step.dst[0].slice.buffer]
                taps = step.window.kernel[0] * step.window.kernel[1]
                total += batch * rows * columns * taps * step.src.channels * step.out_channels
        return total

    def encode(self) -> list[int]:
        """The plan as ints; :meth:`decode` is the inverse."""
        code = [FORMAT, len(self.buffers), *self.buffers, len(self.steps)]
        for step in self.steps:
            code += [step.kind, *_window_code(step.window), step.wave]
            if step.pre:
                code += [step.pre.kind, *_window_code(step.pre.window)]
            else:
                code += [-1]
            if step.response:
                code += _response_code(step.response)
            code += [step.src.buffer, step.src.offset, step.src.channels, len(step.dst)]
            for d in step.dst:
                code += [d.slice.buffer, d.slice.offset, d.slice.channels, d.weight, d.activation]
        return [int(value) for value in code]

    @classmethod
    def decode(cls, code: Sequence[int]) -> Plan:
        """The plan of an encoded list; ValueError if it is not one, with the reason."""
        ints = _Reader(code)
        if (version := ints.take()) != FORMAT:
            raise ValueError(f"plan: format {version} is not the format {FORMAT} of this version")
        buffers = tuple(ints.take() for _ in range(ints.count("buffers")))
        steps = tuple(_read_step(ints) for _ in range(ints.count("steps")))
        if ints.left:
            raise ValueError(f"plan: {ints.left} ints left over at the end")
        plan = cls(buffers, steps)
        plan.check()
        return plan

    def check(self) -> None:
        """Raises ValueError, naming the step, unless every invariant of a plan holds."""
        if len(self.buffers) < 2 or min(self.buffers) < 1:
            raise ValueError(f"plan: needs an input and an output buffer, got {self.buffers}")
        if sum(self.buffers) > 2**31:
            raise ValueError(f"plan: has more than 2^31 channels: {self.buffers}")
        if not self.steps:
            raise ValueError("plan: has no steps")
        written = [(Slice(IN, 0, self.buffers[IN]), -1)]  # and the wave that writes it
        weights: list[int] = []
        wave = 0
        for number, step in enumerate(self.steps):
            where = f"plan: step {number}"
            if step.wave not in (wave, wave + 1) or (number == 0 and step.wave != 0):
                raise ValueError(f"{where}: wave {step.wave} follows wave {wave}")
            wave = step.wave
            _check_step(step, self.buffers, where)
            ready = sum(_common(s, step.src) for s, when in written if when < wave)
            if ready != step.src.channels:
                raise ValueError(f"{where}: reads a channel that no earlier wave has written")
            for d in step.dst:
                if any(_common(s, d.slice) for s, _ in written):
                    raise ValueError(f"{where}: writes a channel a second time")
                written.append((d.slice, wave))
                weights += [d.weight] if step.kind.has_weight else []
        missing = self.buffers[OUT] - sum(s.channels for s, _ in written if s.buffer == OUT)
        if missing:
            raise ValueError(f"plan: {missing} output channels are never written")
        if sorted(weights) != list(range(len(weights))):
            raise ValueError(f"plan: weight indices must be 0 to {len(weights) - 1}, got {weights}")
        if sum(prod(c.weight_shape) for c in self.convolutions()) > MAX_WEIGHTS:
            raise ValueError("plan: the weights have more than 2^40 elements")


def _common(a: Slice, b: Slice) -> int:
    """The number of channels that are in both slices."""
    if a.buffer != b.buffer:
        return 0
    return max(0, min(a.end, b.end) - max(a.offset, b.offset))


def _window_code(window: Window) -> tuple[int, ...]:
    return (*window.kernel, *window.stride, *window.padding, window.ceil_mode)


_FACTORS = "<3f"  # alpha, beta and k of a response, whose bits are ints of the code
_BITS = "<3i"


def _response_code(response: Response) -> tuple[int, ...]:
    factors = struct.pack(_FACTORS, response.alpha, response.beta, response.k)
    return (response.size, *struct.unpack(_BITS, factors))


class _Reader:
    def __init__(self, code: Sequence[int]) -> None:
        self._code = code
        self._next = 0

    @property
    def left(self) -> int:
        return len(self._code) - self._next

    def take(self) -> int:
        if not self.left:
            raise ValueError(f"plan: ends after {len(self._code)} ints, in the middle")
        value = self._code[self._next]
        if not isinstance(value, int) or not -1 <= value < 2**31:
            raise ValueError(f"plan: int {self._next} is out of range: {value!r}")
        self._next += 1
        return value

    def count(self, name: str) -> int:
        value = self.take()
        if not 0 <= value <= self.left:
            raise ValueError(f"plan: {value} {name} cannot be, {self.left} ints are left")
        return value

    def window(self) -> Window:
        v = [self.take() for _ in range(7)]
        try:
            window = Window((v[0], v[1]), (v[2], v[3]), (v[4], v[5]), bool(v[6]))
        except ValueError as error:
            raise ValueError(f"plan: {error}") from None
        if window.ceil_mode != v[6]:
            raise ValueError(f"plan: {v[6]} is not a ceil_mode for the stride {window.stride}")
        return window

    def response(self) -> Response:
        size, *bits = (self.take() for _ in range(4))
        return Response(size, *struct.unpack(_FACTORS, struct.pack(_BITS, *bits)))


def _read_step(ints: _Reader) -> Step:
    try:
        kind = Kind(ints.take())
        window = ints.window()
        wave = ints.take()
        pre = ints.take()
        pool = Pool(Kind(pre), ints.window()) if pre >= 0 else None
        response = ints.response() if kind is Kind.LRN else None
        src = Slice(ints.take(), ints.take(), ints.take())
        dst = []
        for _ in range(ints.count("destinations")):
            slice_ = Slice(ints.take(), ints.take(), ints.take())
            dst.append(Destination(slice_, ints.take(), Activation(ints.take())))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith("plan: ") else f"plan: {text}") from None
    return Step(kind, window, src, tuple(dst), wave, pool, response)


def _check_step(step: Step, buffers: tuple[int, ...], where: str) -> None:
    """What can be said of one step alone: ranges, and that its fields go together."""
    for name, s in (("src", step.src), *(("dst", d.slice) for d in step.dst)):
        if not 0 <= s.buffer < len(buffers) or s.buffer == (OUT if name == "src" else IN):
            raise ValueError(f"{where}: {name} buffer {s.buffer} cannot be used so")
        if s.offset < 0 or s.channels < 1 or s.end > buffers[s.buffer]:
            raise ValueError(
                f"{where}: {name} channels {s.offset} to {s.end} are not in buffer "
                f"{s.buffer} of {buffers[s.buffer]} channels"
            )
    if not step.dst:
        raise ValueError(f"{where}: has no destination")
    try:
        for d in step.dst:
            channels = d.slice.channels if step.kind.has_weight else 0
            Stage(step.kind, channels, step.window, d.activation, step.response)
        if step.pre:
            Stage(step.pre.kind, 0, step.pre.window)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if step.pre and not (step.kind is Kind.POINTWISE and step.pre.kind.is_pool):
        raise ValueError(f"{where}: only a pool can be folded in, and only into a pointwise step")
    if not step.kind.has_weight and (
        len(step.dst) != 1 or step.dst[0].slice.channels != step.src.channels
    ):
        raise ValueError(
            f"{where}: what is no convolution has one destination with the channels of its source"
        )
    if any((d.weight >= 0) != step.kind.has_weight for d in step.dst):
        raise ValueError(f"{where}: convolutions have a weight index, others have -1")
