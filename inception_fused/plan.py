"""The lowered form of a module: buffers and steps. Every back end runs exactly this.

Merging, slice layout, waves and the pool fold are decided here, once, by :func:`lower`; no back end
knows the word "branch". :meth:`Plan.encode` gives the list of ints that crosses the operator
boundary; ``csrc/plan.h`` is the C++ mirror.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod

from .spec import Activation, Branch, Convolution, Fork, Kind, Spec, Stage, Window

IN, OUT = 0, 1
"""Buffer indices of the module's input and output; scratch buffers follow."""

FORMAT = 1
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
    """Where a step writes. ``weight`` is the index of its convolution, -1 for a pool."""

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

    @property
    def out_channels(self) -> int:
        return sum(d.slice.channels for d in self.dst)


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
            size = sizes[step.src.buffer]
            if step.pre:
                size = step.pre.window.output_size(size)
            size = step.window.output_size(size)
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
        """Multiply-adds of direct convolution; pools and epilogues are not counted."""
        sizes = self.sizes(height, width)
        total = 0
        for step in self.steps:
            if not step.kind.is_pool:
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
                weights += [d.weight] if not step.kind.is_pool else []
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
    return (*window.kernel, *window.stride, *window.padding)


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
        v = [self.take() for _ in range(6)]
        try:
            return Window((v[0], v[1]), (v[2], v[3]), (v[4], v[5]))
        except ValueError as error:
            raise ValueError(f"plan: {error}") from None


def _read_step(ints: _Reader) -> Step:
    try:
        kind = Kind(ints.take())
        window = ints.window()
        wave = ints.take()
        pre = ints.take()
        pool = Pool(Kind(pre), ints.window()) if pre >= 0 else None
        src = Slice(ints.take(), ints.take(), ints.take())
        dst = []
        for _ in range(ints.count("destinations")):
            slice_ = Slice(ints.take(), ints.take(), ints.take())
            dst.append(Destination(slice_, ints.take(), Activation(ints.take())))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith("plan: ") else f"plan: {text}") from None
    return Step(kind, window, src, tuple(dst), wave, pool)


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
            channels = 0 if step.kind.is_pool else d.slice.channels
            Stage(step.kind, channels, step.window, d.activation)
        if step.pre:
            Stage(step.pre.kind, 0, step.pre.window)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if step.pre and step.kind is not Kind.POINTWISE:
        raise ValueError(f"{where}: only a pointwise step can have a pool folded in")
    if step.kind.is_pool and (
        len(step.dst) != 1 or step.dst[0].slice.channels != step.src.channels
    ):
        raise ValueError(f"{where}: a pool has one destination with the channels of its source")
    if any((d.weight < 0) != step.kind.is_pool for d in step.dst):
        raise ValueError(f"{where}: convolutions have a weight index, pools have -1")


def lower(spec: Spec) -> Plan:
    """Lowers a spec: merges, lays out slices, assigns waves and folds pools.

    * A pool directly before a 1x1 convolution becomes the operand load of that convolution.
    * All 1x1 convolutions of one source (and one folded pool, or none) become one step.
    * The n-th step of a branch is in wave n, so equal depths of all branches run together; the
      branches of a fork go on counting.
    * A pool before a fork is folded into the 1x1 convolutions behind it, too.
    * Results that a later wave reads go to one scratch buffer per wave and image size.
    """
    lowering = _Lowering(spec)
    for branch in spec.branches:
        lowering.add(branch, Slice(IN, 0, spec.in_channels), (), 0)
    return lowering.plan()


class _Lowering:
    def __init__(self, spec: Spec) -> None:
        self._buffers = [spec.in_channels, spec.out_channels]
        self._scratch: dict[object, int] = {}
        self._merged: dict[object, list[Destination]] = {}
        self._steps: list[tuple[Kind, Window, Slice, list[Destination], int, Pool | None]] = []
        self._out_end = 0
        self._weights = 0

    def add(self, branch: Branch, src: Slice, geometry: tuple[Window, ...], wave: int) -> None:
        """Adds the steps of a branch that reads src.

        Args:
            geometry: the windows that have changed the image size before.
            wave: of the branch's first step.
        """
        fork = branch[-1] if isinstance(branch[-1], Fork) else None
        stages = [item for item in branch if isinstance(item, Stage)]
        # A pool before a fork is left to those of its branches that can fold it.
        held = stages.pop() if fork and stages[-1].kind.is_pool else None
        links = _fold_pools(stages)
        for number, (stage, pool) in enumerate(links):
            last = fork is None and number == len(links) - 1
            src, geometry = self._link(stage, pool, src, geometry, wave, last)
            wave += 1
        if fork is None:
            return
        firsts = (b[0] for b in fork.branches)
        folds = [isinstance(s, Stage) and s.kind is Kind.POINTWISE for s in firsts]
        pooled = (src, geometry, wave)
        if held and not all(folds):
            pooled = (*self._link(held, None, src, geometry, wave, False), wave + 1)
        for rest, fold in zip(fork.branches, folds, strict=True):
            if held and fold:
                self.add((held, *rest), src, geometry, wave)
            else:
                self.add(rest, *pooled)

    def _link(
        self,
        stage: Stage,
        pool: Pool | None,
        src: Slice,
        geometry: tuple[Window, ...],
        wave: int,
        last: bool,
    ) -> tuple[Slice, tuple[Window, ...]]:
        """Adds one step; returns where its result is, and the geometry of that."""
        windows = (*([pool.window] if pool else []), stage.window)
        geometry += tuple(w for w in windows if not w.keeps_size)
        target = self._target(stage.out_channels or src.channels, geometry, wave, last)
        self._step(stage, pool, src, target, wave)
        return target, geometry

    def _target(self, channels: int, geometry: object, wave: int, last: bool) -> Slice:
        if last:
            self._out_end += channels
            return Slice(OUT, self._out_end - channels, channels)
        key = (wave, geometry)
        if key not in self._scratch:
            self._scratch[key] = len(self._buffers)
            self._buffers.append(0)
        buffer = self._scratch[key]
        self._buffers[buffer] += channels
        return Slice(buffer, self._buffers[buffer] - channels, channels)

    def _step(self, stage: Stage, pool: Pool | None, src: Slice, target: Slice, wave: int) -> None:
        if stage.kind.is_pool:
            dst = Destination(target)
        else:
            dst = Destination(target, self._weights, stage.activation)
            self._weights += 1
        merge_key = (src, pool)
        if stage.kind is Kind.POINTWISE and merge_key in self._merged:
            self._merged[merge_key].append(dst)
            return
        destinations = [dst]
        if stage.kind is Kind.POINTWISE:
            self._merged[merge_key] = destinations
        self._steps.append((stage.kind, stage.window, src, destinations, wave, pool))

    def plan(self) -> Plan:
        steps = (
            Step(kind, window, src, tuple(dst), wave, pool)
            for kind, window, src, dst, wave, pool in sorted(self._steps, key=lambda s: s[4])
        )
        plan = Plan(tuple(self._buffers), tuple(steps))
        plan.check()
        return plan


def _fold_pools(stages: Sequence[Stage]) -> list[tuple[Stage, Pool | None]]:
    """The stages, each with the pool that its operand load takes over, if any."""
    links: list[tuple[Stage, Pool | None]] = []
    for stage in stages:
        if stage.kind is Kind.POINTWISE and links and links[-1][0].kind.is_pool:
            pooled, _ = links.pop()
            links.append((stage, Pool(pooled.kind, pooled.window)))
        else:
            links.append((stage, None))
    return links
