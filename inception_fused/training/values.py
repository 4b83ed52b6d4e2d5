"""The buffers of a plan in training: a tensor for the output and for every slice that is read."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import IN, OUT, Plan, Slice
from ..reference import output_format


def homes(plan: Plan) -> dict[Slice, Slice]:
    """By what a destination writes, the slice around it that is read: a source, or the output."""
    output = Slice(OUT, 0, plan.out_channels)
    wholes = {output, *(step.src for step in plan.steps)}
    return {
        d.slice: next(
            w
            for w in wholes
            if w.buffer == d.slice.buffer and w.offset <= d.slice.offset and d.slice.end <= w.end
        )
        for step in plan.steps
        for d in step.dst
    }


def within(tensor: Tensor, home: Slice, place: Slice) -> Tensor:
    """The channels of ``place`` in the tensor of its home."""
    return tensor if home == place else tensor.narrow(1, place.offset - home.offset, place.channels)


class Values:
    """What is in the buffers; tensors are made, in the output's memory format, when written to.

    Attributes:
        input, output: the slices of the plan's input and output.
        homes: :func:`homes`.
    """

    def __init__(self, plan: Plan, x: Tensor) -> None:
        self.input = Slice(IN, 0, plan.in_channels)
        self.output = Slice(OUT, 0, plan.out_channels)
        self.homes = homes(plan)
        self._sizes = plan.sizes(x.shape[2], x.shape[3])
        self._x = x
        self._tensors = {self.input: x}

    def read(self, place: Slice) -> Tensor:
        """The tensor of the input, of the output or of a step's source."""
        return self._tensors[place]

    def target(self, place: Slice) -> Tensor:
        """The tensor to write what a destination gets, perhaps a channel range of a larger one."""
        home = self.homes[place]
        if home not in self._tensors:
            shape = (self._x.shape[0], home.channels, *self._sizes[home.buffer])
            self._tensors[home] = torch.empty(
                shape,
                dtype=self._x.dtype,
                device=self._x.device,
                memory_format=output_format(self._x),
            )
        return within(self._tensors[home], home, place)
