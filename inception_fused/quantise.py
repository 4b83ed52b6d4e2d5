"""int8: the scales of a plan's buffers, from examples, and how far its results are from float32.

Activations are uint8 with one scale and zero per buffer, ``value = scale * (number - zero)``, as
large as the values that the examples give; weights are int8 with one scale per output channel.
``csrc/cpu/quantise.h`` has the numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import reference
from .plan import IN, OUT, Plan
from .spec import Kind

_LEAST, _MOST = 1e-20, 1e20  # of a scale; csrc/cpu/quantise.cpp


@dataclass(frozen=True, slots=True)
class Scale:
    """``value = scale * (number - zero)`` with a number from 0 to 255; scale is a float32."""

    scale: float = 1.0
    zero: int = 0

    @classmethod
    def of_range(cls, low: float, high: float) -> Scale:
        """The scale whose numbers reach from ``low`` to ``high``, and to 0 if that is outside."""
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            return cls()
        scale = min(max((high - low) / 255, _LEAST), _MOST)
        scale = struct.unpack("f", struct.pack("f", scale))[0]
        return cls(scale, min(255, round(-low / scale)))


def flat(scales: Iterable[Scale]) -> tuple[float, ...]:
    """The scales as the operator ``pack_int8`` takes them."""
    return tuple(float(n) for s in scales for n in (s.scale, s.zero))


class Ranges:
    """The smallest and the largest value that was seen in each buffer of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.low = [math.inf] * len(plan.buffers)
        self.high = [-math.inf] * len(plan.buffers)

    def see(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        """Runs the plan in plain torch operators and takes in its buffers; returns the output.

        Raises:
            ValueError: a value is not finite.
        """
        buffers = reference.buffers_of(self.plan, x, weights, biases)
        for i, buffer in enumerate(buffers):
            if i == OUT or buffer.numel() == 0:
                continue
            low, high = (float(v) for v in buffer.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                what = "input" if i == IN else f"buffer {i}"
                raise ValueError(f"the {what} of its plan has values that are not finite")
            self.low[i], self.high[i] = min(self.low[i], low), max(self.high[i], high)
        return buffers[OUT]

    @property
    def seen(self) -> bool:
        """Whether there was any value."""
        return self.low[IN] <= self.high[IN]

    def scales(self) -> tuple[Scale, ...]:
        """One per buffer, that of the output unused. A max pool's result has its source's."""
        low, high = [*self.low], [*self.high]
        pools = [
            (s.src.buffer, s.dst[0].slice.buffer)
            for s in self.plan.steps
            if s.kind is Kind.MAXPOOL and s.dst[0].slice.buffer != OUT
        ]
        for _ in pools:  # as often as a range may have to go from buffer to buffer
            for pair in pools:
                for i in pair:
                    low[i] = min(low[j] for j in pair)
                    high[i] = max(high[j] for j in pair)
        low[OUT] = high[OUT] = 0.0
        return tuple(map(Scale.of_range, low, high))


@dataclass
class Accuracy:
    """How far int8 is from float32 on the examples.

    Attributes:
        images: how many there were.
        largest: the largest difference, relative to the largest magnitude of the float32 outputs.
        rms: the root of the mean squared difference, relative to that of the float32 outputs.
        agreement: for a classifier, in how many of the images the largest output is the same one,
            from 0 to 1; None for anything else.
    """

    images: int = 0
    agreeing: int | None = None
    _difference: float = field(default=0.0, repr=False)
    _magnitude: float = field(default=0.0, repr=False)
    _squares: float = field(default=0.0, repr=False)
    _all_squares: float = field(default=0.0, repr=False)

    def see(self, wanted: Tensor, got: Tensor) -> None:
        """Takes in one pair of outputs, in float32 and in int8; (N, classes) of a classifier."""
        if wanted.numel() == 0:
            return
        wanted, difference = wanted.double(), got.double() - wanted.double()
        self.images += wanted.shape[0]
        self._difference = max(self._difference, float(difference.abs().max()))
        self._magnitude = max(self._magnitude, float(wanted.abs().max()))
        self._squares += float(difference.square().sum())
        self._all_squares += float(wanted.square().sum())
        if wanted.dim() == 2:
            same = int(torch.eq(wanted.argmax(1), got.argmax(1)).sum())
            self.agreeing = (self.agreeing or 0) + same

    @property
    def largest(self) -> float:
        return _ratio(self._difference, self._magnitude)

    @property
    def rms(self) -> float:
        return math.sqrt(_ratio(self._squares, self._all_squares))

    @property
    def agreement(self) -> float | None:
        return None if self.agreeing is None else self.agreeing / self.images

    def __str__(self) -> str:
        images = "1 image" if self.images == 1 else f"{self.images} images"
        text = f"int8, differs by {self.rms:.2%} rms, {self.largest:.2%} at most on {images}"
        if self.agreeing is None:
            return text
        return f"{text}; {self.agreeing} of {self.images} have the same top class"


def _ratio(part: float, whole: float) -> float:
    if whole:
        return part / whole
    return math.inf if part else 0.0
