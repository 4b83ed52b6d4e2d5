"""Sees whether the packed weights of a fused module are still those of its parameters."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from .match import Source
from .trace import all_modules, names_in_code, settings


class Watch:
    """Sees every change of the modules below a fused one that can be seen cheaply.

    Not seen: writes through ``tensor.data`` or a numpy view. After a large network each look at an
    object is a miss in the caches, so nothing is looked at that cannot matter.
    """

    def __init__(self, module: nn.Module, sources: Sequence[Source]) -> None:
        modules = all_modules(module)
        norms = [s.norm for s in sources if s.norm and s.norm.eps_owner]
        self._training = [
            m.__dict__ for m in modules if m is module or "training" in names_in_code(type(m))
        ]
        self._handles = -1  # that torch had given out for hooks when there were none here
        self._hooks = [
            hooks
            for m in modules
            if m is not module
            for hooks in (
                m._forward_hooks,
                m._forward_pre_hooks,
                m._backward_hooks,
                m._backward_pre_hooks,
            )
        ]
        self._child_dicts = [m._modules for m in modules if m._modules]
        self.children = [*chain.from_iterable(map(dict.values, self._child_dicts))]
        self._eps_dicts = [n.eps_owner.__dict__ for n in norms if n.eps_owner]
        self._eps = [n.eps for n in norms]
        followed = {id(n.eps_owner) for n in norms}
        self.settings = [
            s for s in settings(modules) if not (s.name == "eps" and id(s.owner) in followed)
        ]
        self._setting_spots = [(s.owner.__dict__, s.name) for s in self.settings]
        self._setting_values = [s.value for s in self.settings]
        held = [p for s in sources for p in s.places()]
        self._spots: list[tuple[dict[str, Any], str]] = [
            (p.owner._parameters if p.name in p.owner._parameters else p.owner._buffers, p.name)
            for p in held
        ]
        absent = [(s.weight.owner._parameters, "bias") for s in sources if s.bias is None]
        self._absent = [(d, n) for d, n in absent if n in d]
        self.tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._pointers: list[int] = []

    def reason(self) -> str | None:
        """Why the original must run now; None if a plan may."""
        if RemovableHandle.next_id != self._handles:  # every new hook gets a handle
            if any(self._hooks):
                return "a module inside has hooks"
            self._handles = RemovableHandle.next_id
        return self.changed()

    def flags(self) -> tuple[bool, ...]:
        """``training`` of every module whose code reads it."""
        return tuple([d["training"] for d in self._training])

    def changed(self) -> str | None:
        """What was changed so that the plan no longer holds; None if nothing."""
        if [*chain.from_iterable(map(dict.values, self._child_dicts))] != self.children:
            return "a module inside was replaced; fuse it again"
        for d, name in self._absent:
            if d[name] is not None:
                return "a bias was added; fuse it again"
        if [d.get(name) for d, name in self._setting_spots] != self._setting_values:
            return "a setting of a module inside was changed; fuse it again"
        return None

    def forget(self) -> None:
        """Makes :meth:`unchanged` false until the next :meth:`note`."""
        self.tensors = []

    def unchanged(self) -> bool:
        """Whether the tensors and eps are those of the last :meth:`note`."""
        try:
            now = [d[name] for d, name in self._spots]
        except KeyError:
            return False
        return (
            len(now) == len(self.tensors)
            and all(map(operator.is_, now, self.tensors))
            and [t._version for t in now] == self._versions
            and [t.data_ptr() for t in now] == self._pointers
            and [d["eps"] for d in self._eps_dicts] == self._eps
        )

    def note(self) -> str | None:
        """Takes the tensors and eps as they are now; a reason if they cannot be watched."""
        try:
            now = [d[name] for d, name in self._spots]
        except KeyError as error:
            return f"the parameter {error} is gone"
        for t in now:
            if type(t) not in (Tensor, nn.Parameter):
                return f"a parameter is a {type(t).__name__}"
            if t.is_inference():
                return "a parameter was made in inference mode, its changes cannot be seen"
        self.tensors = now
        self._versions = [t._version for t in now]
        self._pointers = [t.data_ptr() for t in now]
        self._eps = [d["eps"] for d in self._eps_dicts]
        return None


def sharded() -> bool:
    """Whether FSDP2 manages modules: it writes weights without a trace, so no pack is kept."""
    state = sys.modules.get("torch.distributed._composable_state")
    return bool(getattr(state, "_module_state_mapping", None))


def _mark_written(optimiser: Optimizer, args: Any, kwargs: Any) -> None:
    """Counts the writes of an optimiser with ``fused=True``, which torch does not (2.14)."""
    increment_version(
        [
            p
            for group in optimiser.param_groups
            if group.get("fused")
            for p in group["params"]
            if p.grad is not None and type(p) in (Tensor, nn.Parameter) and not p.is_inference()
        ]
    )


register_optimizer_step_post_hook(_mark_written)
