"""From a spec to its plan: merging, slices, waves and the pool fold, decided here once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import IN, OUT, Destination, Plan, Pool, Slice, Step
from .spec import Branch, Fork, Kind, Spec, Stage, channels_behind


def lower(spec: Spec) -> Plan:
    """Lowers a spec: merges, lays out slices, assigns waves and folds pools.

    * A pool directly before a 1x1 convolution becomes the operand load of that convolution.
    * All 1x1 convolutions of one source (and one folded pool, or none) become one step.
    * The n-th step of a branch is in wave n, so equal depths of all branches run together; the
      branches of a fork go on counting, and what follows it waits for the last of them.
    * A pool before a fork is folded into the 1x1 convolutions behind it, too; one that makes the
      image smaller only if nothing else reads it.
    * Results that a later wave reads go to one scratch buffer per wave and image size; a fork whose
      result is read gets a buffer of its own, that all its branches write to.
    """
    lowering = _Lowering(spec)
    start = _Point(Slice(IN, 0, spec.in_channels), (), 0)
    for branch in spec.branches:
        lowering.add(branch, start, lowering.out)
    return lowering.plan()


@dataclass(frozen=True)
class _Point:
    """Where a branch has come to: what it reads next.

    ``geometry`` is all that has changed the image size before, ``wave`` that of the next step.
    """

    src: Slice
    geometry: tuple[object, ...]
    wave: int


class _Joint:
    """A buffer that the ends of several branches fill one after the other."""

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer
        self.channels = 0

    def take(self, channels: int) -> Slice:
        self.channels += channels
        return Slice(self.buffer, self.channels - channels, channels)


class _Lowering:
    def __init__(self, spec: Spec) -> None:
        self.out = _Joint(OUT)
        self._buffers = [spec.in_channels, spec.out_channels]
        self._scratch: dict[object, int] = {}
        self._merged: dict[object, list[Destination]] = {}
        self._steps: list[tuple[Stage, Slice, list[Destination], int, Pool | None]] = []
        self._weights = 0

    def add(self, branch: Branch, at: _Point, end: _Joint) -> _Point:
        """Adds the steps of a branch whose results go to ``end``; returns the point behind it."""
        stages: list[Stage] = []
        for number, item in enumerate(branch):
            last = number == len(branch) - 1
            if isinstance(item, Stage):
                stages.append(item)
                continue
            # A pool before a fork is left to those of its branches that can fold it.
            held = stages.pop() if stages and stages[-1].kind.is_pool else None
            at = self._chain(stages, at, None)
            stages = []
            at = self._fork(item, held, at, end if last else None)
        return self._chain(stages, at, end) if stages else at

    def _chain(self, stages: Sequence[Stage], at: _Point, end: _Joint | None) -> _Point:
        """Adds a chain of stages; ``end`` gets the result of the last, if given."""
        links = _fold_pools(stages)
        for number, (stage, pool) in enumerate(links):
            joint = end if number == len(links) - 1 else None
            at = self._link(stage, pool, at, joint)
        return at

    def _fork(self, fork: Fork, held: Stage | None, at: _Point, end: _Joint | None) -> _Point:
        """Adds the branches of a fork behind a pool, which is ``held`` back to be folded."""
        joint = end or _Joint(len(self._buffers))
        if end is None:
            self._buffers.append(channels_behind((fork,), at.src.channels))
        firsts = (b[0] for b in fork.branches)
        folds = [isinstance(s, Stage) and s.kind is Kind.POINTWISE for s in firsts]
        pooled = at
        if held and not all(folds):
            pooled = self._link(held, None, at, None)
            if not held.keeps_size:
                held, at = None, pooled
        points = []
        for branch, fold in zip(fork.branches, folds, strict=True):
            if held and fold:
                points.append(self.add((held, *branch), at, joint))
            else:
                points.append(self.add(branch, pooled, joint))
        whole = Slice(joint.buffer, 0, joint.channels)
        return _Point(whole, points[-1].geometry, max(p.wave for p in points))

    def _link(self, stage: Stage, pool: Pool | None, at: _Point, end: _Joint | None) -> _Point:
        """Adds one step; returns the point behind it."""
        geometry = at.geometry
        if pool and not pool.window.keeps_size:
            geometry += (pool.window,)
        if not stage.keeps_size:
            geometry += (stage.kind, stage.window)
        channels = stage.out_channels or at.src.channels
        target = end.take(channels) if end else self._take_scratch(channels, at.wave, geometry)
        self._step(stage, pool, at, target)
        return _Point(target, geometry, at.wave + 1)

    def _take_scratch(self, channels: int, wave: int, geometry: object) -> Slice:
        key = (wave, geometry)
        if key not in self._scratch:
            self._scratch[key] = len(self._buffers)
            self._buffers.append(0)
        buffer = self._scratch[key]
        self._buffers[buffer] += channels
        return Slice(buffer, self._buffers[buffer] - channels, channels)

    def _step(self, stage: Stage, pool: Pool | None, at: _Point, target: Slice) -> None:
        dst = Destination(target)
        if stage.kind.has_weight:
            dst = Destination(target, self._weights, stage.activation)
            self._weights += 1
        merge_key = (at.src, pool)
        if stage.kind is Kind.POINTWISE and merge_key in self._merged:
            self._merged[merge_key].append(dst)
            return
        destinations = [dst]
        if stage.kind is Kind.POINTWISE:
            self._merged[merge_key] = destinations
        self._steps.append((stage, at.src, destinations, at.wave, pool))

    def plan(self) -> Plan:
        steps = (
            Step(stage.kind, stage.window, src, tuple(dst), wave, pool, stage.response)
            for stage, src, dst, wave, pool in sorted(self._steps, key=lambda s: s[3])
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
