"""Runs a plan: prepared once for tensors of one layout, then launched from kept handles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ..ops import allows_tf32
from ..plan import IN, OUT, Plan
from ..reference import output_format
from . import cache, choose, launch, problem, program
from .choose import Math, Tile
from .program import View


def math_of(dtype: torch.dtype) -> Math:
    """How products of such tensors are computed now."""
    if dtype is not torch.float32:
        return Math.HALF
    return Math.TF32 if allows_tf32() else Math.IEEE


def device_of(x: Tensor) -> choose.Device:
    """What the chooser knows of x's device, which must be the current one."""
    target = triton.runtime.driver.active.get_current_target()
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    return choose.device_for(target.arch, processors)


@dataclass(frozen=True)
class Work:
    """A plan for tensors of one shape and layout.

    ``views`` are by buffer; ``scratch`` is the first element of each buffer in one allocation of
    ``scratch_elements``.
    """

    plan: Plan
    shape: tuple[int, ...]
    math: Math
    launches: tuple[problem.Launch, ...]
    views: tuple[View, ...]
    scratch: tuple[int, ...]
    scratch_elements: int

    @classmethod
    def of(cls, plan: Plan, x: Tensor, out: Tensor) -> Work:
        """The work for tensors like these, at addresses like these modulo 16 bytes."""
        images, _, height, width = x.shape
        elements = problem.scratch_elements(plan, images, height, width)
        ends = tuple(accumulate(elements))
        sizes = plan.sizes(height, width)

        def view(buffer: int) -> View:
            if buffer in (IN, OUT):
                t = x if buffer == IN else out
                return View.of(t.shape, t.stride(), t.element_size(), t.data_ptr() % 16)
            return View.scratch(plan.buffers[buffer], *sizes[buffer], x.element_size())

        return cls(
            plan,
            tuple(x.shape),
            math_of(x.dtype),
            problem.launches(plan, images, height, width),
            tuple(map(view, range(len(plan.buffers)))),
            tuple(end - n for end, n in zip(ends, elements, strict=True)),
            ends[-1],
        )

    def call(self, index: int, tile: Tile, widen: bool = False) -> program.Call:
        """The call of a launch with a tile."""
        one = self.launches[index]
        scratch = None if one.scratch == OUT else self.views[one.scratch]
        precision = "tf32" if self.math is Math.TF32 else "ieee"
        views = (self.views[one.source], self.views[OUT], scratch)
        return program.call(one, *views, tile, precision, widen)

    def tiles(self, x: Tensor) -> Sequence[Tile]:
        """A tile for each launch: as it was measured, else as the paper model says."""
        if launch.INTERPRETS:
            return [choose.interpreted(one) for one in self.launches]
        known = cache.TILES.load(torch.cuda.get_device_name(x.device)).get(cache.key(self), ())
        if len(known) == len(self.launches):
            return known
        device = device_of(x)
        return [choose.choose(one, self.math, device) for one in self.launches]


class Program:
    """Work with its kernels compiled; a call takes tensors like those it was made of."""

    def __init__(
        self, work: Work, tiles: Sequence[Tile], x: Tensor, pack: Tensor, out: Tensor
    ) -> None:
        self._work = work
        self._device = x.get_device()
        self._shape = tuple(out.shape)
        self._memory_format = output_format(x)
        widen = launch.INTERPRETS and x.dtype is torch.bfloat16
        aligned = [t.data_ptr() % 16 == 0 for t in (x, out, pack)]
        self._launches = []
        for i, (one, tile) in enumerate(zip(work.launches, tiles, strict=True)):
            source = aligned[IN] if one.source == IN else True
            target = aligned[OUT] if one.scratch == OUT else True
            pointers = (source, aligned[OUT], target, aligned[2])
            run = launch.launcher(
                work.call(i, tile, widen), x.dtype, pointers if one.convolves else pointers[::2]
            )
            self._launches.append((run, one.source, one.scratch, one.convolves))

    def new_output(self, x: Tensor) -> Tensor:
        """A tensor that can be ``out``."""
        return torch.empty(
            self._shape, dtype=x.dtype, device=x.device, memory_format=self._memory_format
        )

    def __call__(self, x: Tensor, pack: Tensor, out: Tensor) -> None:
        """Computes into out. The device must be the current one."""
        work = self._work
        scratch = x.new_empty(work.scratch_elements)
        buffers: list[Tensor] | list[int]
        packed: Tensor | int
        if launch.INTERPRETS:
            stream = 0
            packed = pack
            buffers = [x, out, *(scratch[first:] for first in work.scratch[2:])]
        else:
            stream = torch._C._cuda_getCurrentRawStream(self._device)
            packed = pack.data_ptr()
            start, item = scratch.data_ptr(), scratch.element_size()
            buffers = [x.data_ptr(), out.data_ptr()]
            buffers += [start + first * item for first in work.scratch[2:]]
        for run, source, target, convolves in self._launches:
            if convolves:
                run(buffers[source], buffers[OUT], buffers[target], packed, stream=stream)
            else:
                run(buffers[source], buffers[target], stream=stream)


def prepare(
    plan: Plan, x: Tensor, pack: Tensor, out: Tensor, tiles: Sequence[Tile] | None = None
) -> Program:
    """The program of a plan for such tensors; ``program(x, pack, out)`` runs it.

    Args:
        x: (N, plan.in_channels, H, W).
        pack: what ``inception_fused::triton_pack`` gives for the plan.
        out: as :func:`reference.empty_output` gives it, or a slice of a larger tensor.
        tiles: for each launch (:func:`problem.launches`) one of :func:`tune.candidates`; the
            measured ones by default, else what the paper model says.
    """
    work = Work.of(plan, x, out)
    return Program(work, work.tiles(x) if tiles is None else tiles, x, pack, out)
