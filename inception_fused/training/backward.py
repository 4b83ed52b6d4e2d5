"""The backward pass of a training step."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import groupby

from torch import Tensor

from ..plan import Plan, Slice, Step
from ..spec import Activation
from .forward import Kept, Parameters, activate, joined, part
from .operators import Operators
from .values import Values, within

Name = tuple[int, str]
"""A parameter: its weight index, and the name of a field of :class:`Parameters`."""


class Backward:
    """The gradients of one forward pass.

    Args:
        weights: by weight index.
        batch: by weight index, whether the norm behind uses the statistics of the batch; None:
            there is no norm.
        kept: of each step.
        needs_x: whether the gradient of x is needed.
        needs: the parameters whose gradients are.

    Attributes:
        grads: of the parameters, after :meth:`run`.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        weights: Sequence[Tensor],
        batch: Sequence[bool | None],
        kept: Sequence[Kept],
        needs_x: bool,
        needs: Set[Name],
        operators: Operators,
    ) -> None:
        self._plan = plan
        self._x = x
        self._weights = weights
        self._batch = batch
        self._kept = kept
        self._needs = needs
        self._operators = operators
        self._values = Values(plan, x)
        self._home = self._values.homes
        self._wanted = {self._values.input} if needs_x else set()
        for step in plan.steps:
            for d in step.dst:
                if step.src in self._wanted or self._needs_any([d.weight], *Parameters._fields):
                    self._wanted |= {d.slice, self._home[d.slice]}
        self._grads: dict[Slice, Tensor] = {}
        self.grads: dict[Name, Tensor] = {}

    def run(self, grad_out: Tensor) -> Tensor | None:
        """Computes all gradients from that of the output; returns that of x if it is needed."""
        self._grads[self._values.output] = grad_out
        for step, kept in zip(reversed(self._plan.steps), reversed(self._kept), strict=True):
            grads = {
                n: self._grad_of(d.slice) for n, d in enumerate(step.dst) if d.slice in self._wanted
            }
            if not grads:
                continue
            if step.kind.has_weight:
                self._convolutions(step, kept, grads)
            else:
                source = self._value(step.src)
                self._add(step, self._operators.grad_unweighted(step, grads[0], source))
        return self._grads.get(self._values.input)

    def _grad_of(self, place: Slice) -> Tensor:
        """The gradient of what a destination got; nothing reads it twice."""
        home = self._home[place]
        whole = self._grads.pop(home) if home == place else self._grads[home]
        return within(whole, home, place)

    def _needs_any(self, indices: Sequence[int], *names: str) -> bool:
        return any((i, name) in self._needs for i in indices for name in names)

    def _add(self, step: Step, grad: Tensor) -> None:
        """Adds to the gradient of the step's source, which may be read by other steps, too."""
        if step.src in self._grads:
            self._grads[step.src].add_(grad)
        else:
            self._grads[step.src] = grad

    def _value(self, place: Slice) -> Tensor:
        """What was in a step's source in the forward pass."""
        if place == self._values.input:
            return self._x
        values = Values(self._plan, self._x)
        for step, kept in zip(self._plan.steps, self._kept, strict=True):
            for number, d in enumerate(step.dst):
                if self._home[d.slice] != place:
                    continue
                target = values.target(d.slice)
                if step.kind.has_weight:
                    assert kept.z is not None
                    activate(step, number, kept.z, kept.constants, target, self._operators)
                else:
                    target.copy_(self._operators.unweighted(step, self._value(step.src)))
        return values.read(place)

    def _convolutions(self, step: Step, kept: Kept, grads: dict[int, Tensor]) -> None:
        """Takes the gradients of some destinations to the step's parameters and to its source."""
        numbers: list[int] = []
        parts: list[Tensor] = []
        for run in self._alike(step, list(grads)):
            grad = self._before_norm(step, kept, run, grads)
            if grad is not None:
                numbers += run
                parts.append(grad)
        grads.clear()
        if not numbers:
            return
        grad = joined(parts, 1)
        parts.clear()
        indices = [step.dst[n].weight for n in numbers]
        if self._needs_any(indices, "bias"):
            self._give("bias", indices, grad.sum((0, 2, 3)))
        needs_weight, needs_source = self._needs_any(indices, "weight"), step.src in self._wanted
        if not (needs_weight or needs_source):
            return
        source = operand = self._value(step.src)
        if step.pre:
            operand, where = self._operators.pool(source, step.pre)
        if needs_weight:
            self._grad_weights(step, indices, grad, operand)
        if needs_source:
            weight = joined([self._weights[i] for i in indices])
            grad = self._operators.grad_input(grad, operand, weight, step.window)
            if step.pre:
                del operand
                grad = self._operators.grad_pool(grad, source, step.pre, where)
            self._add(step, grad)

    def _alike(self, step: Step, numbers: list[int]) -> list[list[int]]:
        """The destinations in runs that are adjacent and have the same kind of norm."""
        kinds = [(self._batch[step.dst[n].weight], n - i) for i, n in enumerate(numbers)]
        pairs = groupby(zip(kinds, numbers, strict=True), key=lambda pair: pair[0])
        return [[number for _, number in run] for _, run in pairs]

    def _before_norm(
        self, step: Step, kept: Kept, run: list[int], grads: dict[int, Tensor]
    ) -> Tensor | None:
        """The gradient of what the convolutions gave for a run; gives gammas and betas theirs.

        None if nothing but those needs a gradient.
        """
        indices = [step.dst[n].weight for n in run]
        batch = self._batch[indices[0]]
        if kept.z is None:
            return joined([grads[n] for n in run], 1)
        own = [grads[n] for n in run]
        relus = [step.dst[n].activation is Activation.RELU for n in run]
        z, constants = part(step, run, kept.z, kept.constants)
        if constants is None or batch is None:
            return self._operators.grad_relus(own, z, constants, relus)
        needs_z = step.src in self._wanted or self._needs_any(indices, "weight", "bias")
        mask = (needs_z, self._needs_any(indices, "gamma"), self._needs_any(indices, "beta"))
        grad_z, gamma, beta = self._operators.grad_norm(own, z, constants, relus, batch, mask)
        self._give("gamma", indices, gamma)
        self._give("beta", indices, beta)
        return grad_z

    def _grad_weights(self, step: Step, indices: list[int], grad: Tensor, operand: Tensor) -> None:
        weights = [self._weights[i] for i in indices]
        if all((i, "weight") in self._needs for i in indices):
            found = self._operators.grad_weight(grad, operand, joined(weights), step.window)
            self._give("weight", indices, found)
            return
        parts = grad.split_with_sizes([len(w) for w in weights], 1)
        for i, weight, own in zip(indices, weights, parts, strict=True):
            if (i, "weight") in self._needs:
                found = self._operators.grad_weight(own, operand, weight, step.window)
                self._give("weight", [i], found)

    def _give(self, name: str, indices: list[int], found: Tensor | None) -> None:
        """Notes the gradients of the parameters of this name, joined in ``found``, if needed."""
        if found is not None:
            parts = found.split_with_sizes([len(self._weights[i]) for i in indices])
            for i, grad in zip(indices, parts, strict=True):
                if (i, name) in self._needs:
                    self.grads[i, name] = grad
