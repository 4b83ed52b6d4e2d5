"""A fused module: the original's instance, whose forward runs the plan when it may.

The class of the instance becomes a subclass of the original class, so state_dict keys, attributes,
hooks and ``isinstance`` stay as they were. Weights are read from where the original keeps them.
"""

from __future__ import annotations

import copy
import copyreg
import inspect
import operator
import sys
import weakref
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .backends import Backend, choose
from .find import FUSION, examine, fold_all
from .match import Match, Source
from .models import Branches
from .plan import lower
from .spec import Spec
from .trace import all_modules

_REMEMBERED = 64  # shapes of x whose back end is kept


class _Watch:
    """Sees every change of the modules below a fused one that can be seen cheaply.

    Not seen: writes through ``tensor.data`` or a numpy view, and changed strides or paddings.
    """

    def __init__(self, module: nn.Module, sources: Sequence[Source]) -> None:
        modules = all_modules(module)
        norms = [s.norm for s in sources if s.norm and s.norm.eps_owner]
        self._dicts = [m.__dict__ for m in modules]
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
        self._child_dicts = [m._modules for m in modules]
        self._children = [*chain.from_iterable(map(dict.values, self._child_dicts))]
        self._eps_dicts = [n.eps_owner.__dict__ for n in norms if n.eps_owner]
        self._eps = [n.eps for n in norms]
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
        """Why the original must run now; None if the plan may."""
        if any(self._hooks):
            return "a module inside has hooks"
        if True in [d["training"] for d in self._dicts]:
            return "it is in training mode"
        if [*chain.from_iterable(map(dict.values, self._child_dicts))] != self._children:
            return "a module inside was replaced; fuse it again"
        for d, name in self._absent:
            if d[name] is not None:
                return "a bias was added; fuse it again"
        return None

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


class Fusion:
    """What a fused module knows: the plan, the places of its parameters, and the packed weights.

    Attributes:
        spec, plan: what is computed.
        sources: the places of the parameters of each convolution.
        wanted: the back end asked for, or "auto".
        taken: the back end of the last call, or "original"; "" before the first call.
        reason: why the last call took what it took; "" if there is nothing to say.
    """

    def __init__(self, module: nn.Module, match: Match, wanted: str) -> None:
        self.module = module
        self.match = match
        self.spec = match.spec
        self.sources = match.sources
        self.plan = lower(match.spec)
        self.wanted = wanted
        self.taken = ""
        self.reason = ""
        self.drop()

    def __deepcopy__(self, memo: dict[int, Any]) -> Fusion:
        match = Match(self.match.spec, tuple(copy.deepcopy(s, memo) for s in self.match.sources))
        return Fusion(copy.deepcopy(self.module, memo), match, self.wanted)

    def drop(self) -> None:
        """Forgets the packed weights and everything seen; the next call looks again."""
        self._watch: _Watch | None = None
        self._packs: dict[str, list[Tensor]] = {}
        self._choices: dict[Any, tuple[Backend | None, str]] = {}

    def __call__(self, x: Tensor) -> Tensor | None:
        """The module's output; None if the original must run, then :attr:`reason` says why."""
        if torch.compiler.is_compiling():
            return self._live(x)
        if torch._C._get_tracing_state() is not None:
            return self._original("torch.jit.trace is recording")
        if torch._C._are_functorch_transforms_active():
            return self._original("a torch.func transform (grad, vmap, ...) is active")
        if torch._C._len_torch_dispatch_stack():
            return self._live(x)
        if type(x) is not Tensor and type(x) is not nn.Parameter:
            return self._original(f"the input is a {type(x).__name__}")
        watch = self._watch
        if watch is None:
            watch = _Watch(self.module, self.sources)
        elif (reason := watch.reason()) is not None:
            return self._original(reason)
        if not watch.unchanged() or _sharded():
            if (reason := watch.reason() or watch.note()) is not None:
                return self._original(reason)
            self._packs.clear()
            self._choices.clear()
            self._watch = watch
        autocast = torch.is_autocast_enabled(x.device.type)
        key = (x.dtype, x.device, x.shape, x.stride(), autocast)
        found = self._choices.get(key)
        if found is None:
            if len(self._choices) >= _REMEMBERED:
                self._choices.clear()
            found = self._choose(x, autocast)
            self._choices[key] = found
        backend, reason = found
        if backend is None:
            return self._original(reason)
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return self._run(backend, x, reason, watch.tensors)

    def _original(self, reason: str) -> Tensor | None:
        self.taken, self.reason = "original", reason
        self.drop()
        return None

    def _choose(self, x: Tensor, autocast: bool) -> tuple[Backend | None, str]:
        """The back end for such an x, or None, and why not the original or one before it."""
        weight = self.sources[0].weight.tensor()
        assert weight is not None
        if x.dim() != 4 or x.shape[1] != self.plan.in_channels:
            return None, f"the input has shape {tuple(x.shape)}"
        if x.device != weight.device:
            return None, f"the input is on {x.device}, the parameters are on {weight.device}"
        if autocast:
            if any(all(s.kind.is_pool for s in b) for b in self.spec.branches):
                return None, "under autocast a branch without a convolution keeps its dtype"
            x = x.to(torch.get_autocast_dtype(x.device.type))
        elif x.dtype != weight.dtype:
            return None, f"the input is {x.dtype}, the parameters are {weight.dtype}"
        try:
            self.plan.sizes(x.shape[2], x.shape[3])
            choice = choose(self.plan, x, self.wanted)
        except ValueError as error:
            return None, str(error)
        reason = "; ".join(f"{name}: {why}" for name, why in choice.refused)
        if choice.backend.name == "reference" and self.wanted != "reference":
            return None, reason or "the reference back end is not faster than the original"
        return choice.backend, reason

    def _run(self, backend: Backend, x: Tensor, reason: str, tensors: Sequence[Tensor]) -> Tensor:
        self.taken, self.reason = backend.name, reason
        key = f"{backend.name} {x.dtype}"
        packed = self._packs.get(key)
        if packed is None:
            # A pack made in inference mode could not be used in autograd later.
            with torch.inference_mode(False), torch.no_grad():
                packed = self._packs[key] = backend.pack(self.plan, *self._folded(x.dtype))
        if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
            weights, biases = self._folded(x.dtype)
            return ops.differentiable(backend.run, self.plan, x, packed, weights, biases)
        result: Tensor = backend.run(self.plan, x, packed)
        return result

    def _folded(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        weights, biases = fold_all(self.sources)
        return [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]

    def _live(self, x: Tensor) -> Tensor | None:
        """The call as a graph sees it: folded and packed from the parameters, nothing kept."""
        modules = all_modules(self.module)
        if any(m.training for m in modules):
            return None
        for m in modules:
            if m is not self.module and (m._forward_hooks or m._forward_pre_hooks):
                return None
        autocast = torch.is_autocast_enabled(x.device.type)
        backend, _ = self._choose(x, autocast)
        if backend is None:
            return None
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        weights, biases = self._folded(x.dtype)
        packed = backend.pack(
            self.plan, [w.detach() for w in weights], [b.detach() for b in biases]
        )
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
            return ops.differentiable(backend.run, self.plan, x, packed, weights, biases)
        result: Tensor = backend.run(self.plan, x, packed)
        return result


def _sharded() -> bool:
    """Whether FSDP2 manages modules: it writes weights without a trace, so no pack is kept."""
    state = sys.modules.get("torch.distributed._composable_state")
    return bool(getattr(state, "_module_state_mapping", None))


class FusedInception(nn.Module):
    """An Inception module that runs fused in eval mode.

    ``FusedInception(spec)`` builds a new, trainable one with the parameters of
    ``models.Inception.from_spec(spec)``; :func:`inception_fused.fuse` makes those of a model so.
    Input (N, C, H, W); output (N, C', H', W') as the original gives. In training mode, and wherever
    no back end can run the plan, the original forward runs; ``inception_fused.explain`` says why.

    Saved or pickled it is the plain original; ``copy.deepcopy`` stays fused.

    Args:
        spec: the branches.
        batch_norm: a batch norm behind every convolution, which then has no bias.
        backend: "auto" or the name of a back end.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> FusedInception:
        if cls is FusedInception:
            return _build(*args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if FUSION not in self.__dict__:
            super().__init__(*args, **kwargs)

    @classmethod
    def from_module(cls, module: nn.Module, backend: str = "auto") -> FusedInception:
        """A fused module that shares parameters and submodules with ``module``, which stays plain.

        Raises:
            TypeError: not a module.
            ValueError: it cannot be fused; the message says why.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
        if isinstance(module, FusedInception):
            return module
        twin = module.__class__.__new__(module.__class__)
        twin.__dict__.update(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = module.__dict__[name].copy()
        verdict = examine(twin)
        if verdict is None or verdict.match is None:
            reason = verdict.reason if verdict else "it concatenates nothing"
            raise ValueError(f"{type(module).__name__} cannot be fused: {reason}")
        return swap(twin, verdict.match, backend)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        fusion = self.__dict__.get(FUSION)
        if fusion is not None and len(args) == 1 and not kwargs:
            y = fusion(args[0])
            if y is not None:
                return y
        return super().forward(*args, **kwargs)

    def refresh(self) -> None:
        """Makes the next call read the weights again, after a write that cannot be seen."""
        if (fusion := self.__dict__.get(FUSION)) is not None:
            fusion.drop()

    def train(self, mode: bool = True) -> FusedInception:
        FusedInception.refresh(self)
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> FusedInception:
        FusedInception.refresh(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica: nn.Module = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.__dict__.pop(FUSION, None)  # its places are those of the first device
        return replica

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedInception:
        reduced: Any = super().__reduce_ex__(4)
        make, args, state, *_ = reduced
        new: Any = make(*args)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(state, memo))
        assert isinstance(new, FusedInception)
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, args, state, *rest = reduced
        base = original_class(self)
        args = tuple(base if a is type(self) else a for a in args)
        if make.__name__ == "__newobj__":  # pickle insists on the class of the object for it
            make, args = copyreg._reconstructor, (base, object, None)  # type: ignore[attr-defined]
        if isinstance(state, dict):
            state = {k: v for k, v in state.items() if k != FUSION}
        return (make, args, state, *rest)


def _forward(self: FusedInception, x: Any) -> Any:
    return FusedInception.forward(self, x)


_CLASSES: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def fused_class(base: Any) -> type:
    """The subclass of ``base`` that its fused instances have."""
    found = _CLASSES.get(base)
    if found is None:
        names: dict[str, Any] = {
            k: getattr(base, k) for k in ("__module__", "__qualname__", "__doc__")
        }
        if [*inspect.signature(base.forward).parameters] == ["self", "x"]:
            names["forward"] = _forward  # torch.export and torch.fx read the signature
        found = _CLASSES[base] = type(base.__name__, (FusedInception, base), names)
    return found


def original_class(module: nn.Module) -> type:
    """The class that a fused module has without the fusion."""
    return type(module).__bases__[1]


def fusion_of(module: nn.Module) -> Fusion | None:
    """What a fused module knows; None for any other."""
    fusion = module.__dict__.get(FUSION)
    return fusion if isinstance(fusion, Fusion) else None


def swap(module: nn.Module, match: Match, backend: str) -> FusedInception:
    """Makes the module, in place, a fused one."""
    module.__dict__[FUSION] = Fusion(module, match, backend)
    module.__class__ = fused_class(type(module))
    assert isinstance(module, FusedInception)
    return module


def unswap(module: FusedInception) -> None:
    """Gives the module its original class back."""
    module.__dict__.pop(FUSION, None)
    module.__class__ = original_class(module)


def _build(spec: Spec, batch_norm: bool = False, backend: str = "auto") -> FusedInception:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec must be a Spec, got {type(spec).__name__}")
    module = Branches(spec, batch_norm)
    verdict = examine(module)
    assert verdict is not None
    if verdict.match is None:
        raise ValueError(f"spec cannot be fused: {verdict.reason}")
    return swap(module, verdict.match, backend)
