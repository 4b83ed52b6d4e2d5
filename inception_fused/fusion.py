"""What a fused module knows, and its call: guards, choice of the back end, packed weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import graph, ops, training
from .backends import Backend, Tuning, choose
from .examine import fold_all, parameters_of
from .gradients import step_gradients
from .lower import lower
from .match import Match
from .modes import Modes
from .plan import OUT
from .route import Key, Route, Timing, autocasts, key_of
from .spec import convolves
from .trace import FUSION, NETWORK, all_modules
from .watch import Watch, sharded

if TYPE_CHECKING:
    from .quantise import Accuracy

_REMEMBERED = 64  # shapes of x whose back end is kept


@dataclass(frozen=True)
class Options:
    """What the user asked for: a back end's name or "auto", and whether Winograd's is allowed."""

    backend: str = "auto"
    winograd: bool = True


@dataclass(frozen=True)
class Int8:
    """What became of a module that the user wants in int8.

    Attributes:
        backend: what runs it; None if nothing can.
        scales: scale and zero of each buffer of the plan, as the backend has them.
        reason: why nothing can; "" if something does.
        accuracy: what was found on the examples.
    """

    backend: Backend | None
    scales: tuple[float, ...] = ()
    reason: str = ""
    accuracy: Accuracy | None = None


class Fusion:
    """What a fused module knows: the plan, the places of its parameters, and the packed weights.

    Attributes:
        spec, plan: what is computed.
        sources: the places of the parameters of each convolution.
        options: what the user asked for.
        network: whether it is of a network, whose modules have fusions of their own.
        taken: the back end of the last call, "training" or "original"; "" before the first call.
        reason: why the last call took what it took; "" if there is nothing to say.
        timings: what was measured for inputs like that of the last call.
        int8: if the user asked for it.
        observer: while there is one, every call shows it this and x, and the original runs.
    """

    def __init__(
        self, module: nn.Module, match: Match, options: Options, network: bool = False
    ) -> None:
        self.module = module
        self.match = match
        self.spec = match.spec
        self.sources = match.sources
        self.plan = lower(match.spec)
        self.options = options
        self.network = network
        self.taken = ""
        self.reason = ""
        self.timings: tuple[Timing, ...] = ()
        self.watch: Watch | None = None
        self.int8: Int8 | None = None
        self.observer: Callable[[Fusion, Tensor], None] | None = None
        self._modes = Modes(module, match)
        self._measured: dict[Key, Route] = {}
        self.drop()

    def begin(self) -> None:
        """Starts to watch; the module must be complete."""
        self.watch = Watch(self.module, self.sources)

    def __deepcopy__(self, memo: dict[int, Any]) -> Fusion:
        sources = tuple(copy.deepcopy(s, memo) for s in self.match.sources)
        match = replace(self.match, sources=sources)
        new = Fusion(copy.deepcopy(self.module, memo), match, self.options, self.network)
        new._measured = dict(self._measured)
        new.int8 = self.int8
        return new

    def take(self, key: Key, route: Route | None) -> None:
        """From now on inputs of this key run by this route, if they may; None: as if untuned.

        It holds for any values of the weights, and in deep copies.
        """
        self._routes.pop(key, None)
        self._measured.pop(key, None)
        if route is not None:
            self._measured[key] = route

    def route_of(self, key: Key) -> Route | None:
        """How the last call with an input of this key ran; None if it was not by a plan's route."""
        return self._routes.get(key)

    def measured(self, key: Key) -> Route | None:
        """The route that was given to :meth:`take`."""
        return self._measured.get(key)

    def last_measured(self) -> tuple[Timing, ...]:
        """What was measured for the kind of input that was tuned last."""
        return next((r.timings for r in reversed(self._measured.values()) if r.timings), ())

    def changed(self) -> str | None:
        """What was changed so that the plan no longer holds; None if nothing."""
        return self.watch.changed() if self.watch else None

    def drop(self) -> None:
        """Forgets the packed weights and everything seen; the next call looks again."""
        if self.watch is not None:
            self.watch.forget()
        with suppress(AttributeError):  # the parameter may be gone
            graph.forget(self.sources[0].weight.tensor())
        self.drop_packs()
        self._routes: dict[Key, Route] = {}

    def drop_packs(self) -> None:
        """Forgets the packed weights alone; the next call packs those that it needs."""
        self._packs: dict[Any, list[Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor | None:
        """The module's output; None if the original must run, then :attr:`reason` says why."""
        if self.observer is not None:
            self.observer(self, x)
            return None
        if torch.onnx.is_in_onnx_export():
            return None  # the original's operators are ONNX's
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
        key = key_of(x)
        autocast = key[-1] is not None
        route = self._routes.get(key)
        if route is not None and route.backend is None:  # whatever the weights are now
            return self._refused(route)
        watch = self.watch
        assert watch is not None
        if (reason := watch.reason()) is not None:
            return self._original(reason)
        flags = watch.flags()
        if True in flags and self.network:
            return self._original("it is in training mode, in which its modules run one by one")
        if True in flags or self.match.batch:
            reason = self._why_not(x, autocast) or training.why_not(self.plan, x)
            if reason is not None:
                return self._original(f"in training mode: {reason}")
            mode = self._modes.match(flags, x.shape)
            if isinstance(mode, str):
                return self._original(mode)
            if mode.batch or torch.is_grad_enabled():
                return self._train(mode, x, autocast)
        if not watch.unchanged() or sharded():
            if (reason := watch.note()) is not None:
                return self._original(reason)
            self._packs.clear()
            self._routes.clear()
            route = None
        if route is None:
            if len(self._routes) >= _REMEMBERED:
                self._routes.clear()
            route = self._routes[key] = self._route(x, autocast, key)
        if route.backend is None:
            return self._refused(route)
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.int8 is not None:
            route = self._in_int8(route, self.int8, x, _wants_gradients(x, watch.tensors))
        backend = route.backend
        assert backend is not None
        y = self._run(route, backend, x, watch.tensors)
        return y.flatten(1) if self.match.flat else y

    def leave(self, reason: str) -> None:
        """Notes that a call takes the original path, and why."""
        self.taken, self.reason, self.timings = "original", reason, ()
        self.drop()

    def _refused(self, route: Route) -> Tensor | None:
        self.taken, self.reason, self.timings = "original", route.reason, route.timings
        return None

    def _original(self, reason: str) -> Tensor | None:
        self.leave(reason)
        return None

    def _route(self, x: Tensor, autocast: bool, key: Key | None = None) -> Route:
        """How to run such an x; the reason says why not the fused path or a back end before.

        Args:
            key: of x; None if a graph is recorded, which knows neither measurements nor tunings.
        """
        if (reason := self._why_not(x, autocast)) is not None:
            return Route(None, reason)
        if key is not None and (measured := self._measured.get(key)) is not None:
            return measured
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        try:
            size = self.plan.sizes(x.shape[2], x.shape[3])[OUT]
            if self.match.flat and size != (1, 1):
                return Route(None, f"{size[0]}x{size[1]} pixels are left, not one")
            choice = choose(self.plan, x, self.options.backend)
        except ValueError as error:
            return Route(None, str(error))
        reason = "; ".join(f"{name}: {why}" for name, why in choice.refused)
        backend = choice.backend
        if backend.name == "reference" and self.options.backend != "reference":
            return Route(None, reason or "the reference back end is not faster than the original")
        tuning = backend.tuning(self.plan, x) if key and self.options.winograd else ()
        return Route(backend, reason, tuning)

    def why_not_int8(self, x: Any) -> str | None:
        """Why such an input, outside of autocast, cannot be computed in int8; None if it can."""
        if type(x) is not Tensor and type(x) is not nn.Parameter:
            return f"the input is a {type(x).__name__}"
        if x.dtype is not torch.float32 or x.device.type != "cpu":
            return f"the input is {x.dtype} on {x.device}, int8 is for float32 on the CPU"
        route = self._route(x, autocast=False)
        return route.reason if route.backend is None else None

    def _in_int8(self, route: Route, int8: Int8, x: Tensor, wants_gradients: bool) -> Route:
        """The route in int8 instead of one that may be taken; or that, and why not the other."""
        if int8.backend is None:
            reason = int8.reason
        elif wants_gradients:
            reason = "gradients are wanted, call it under torch.no_grad() or torch.inference_mode()"
        elif (refused := int8.backend.why_not(self.plan, x)) is not None:
            reason = refused
        else:
            return Route(int8.backend, route.reason)
        reasons = filter(None, (route.reason, f"not in int8: {reason}"))
        return replace(route, reason="; ".join(reasons))

    def _why_not(self, x: Tensor, autocast: bool) -> str | None:
        """Why no plan can run for such an x; None if one may."""
        weight = self.sources[0].weight.tensor()
        assert weight is not None
        if x.dim() != 4 or x.shape[1] != self.plan.in_channels:
            return f"the input has shape {tuple(x.shape)}"
        if x.device != weight.device:
            return f"the input is on {x.device}, the parameters are on {weight.device}"
        if autocast and not all(map(convolves, self.spec.branches)):
            return "under autocast a branch without a convolution keeps its dtype"
        if not autocast and x.dtype != weight.dtype:
            return f"the input is {x.dtype}, the parameters are {weight.dtype}"
        return None

    def _train(self, mode: Match, x: Tensor, autocast: bool) -> Tensor | None:
        """The call in training mode. The packs are dropped, as what they are made of changes."""
        assert self.watch is not None
        if (reason := self.watch.note()) is not None:
            return self._original(f"in training mode: {reason}")
        self.drop()
        self.taken, self.reason, self.timings = "training", "", ()
        backend, winograd = self.options.backend, self.options.winograd
        operators = training.operators_for(x, backend, winograd, step_gradients(x))
        tensors, norms = training.parameters_of(mode.sources), training.norms_of(mode.sources)
        if autocast:
            dtype = torch.get_autocast_dtype(x.device.type)
            x = x.to(dtype)
            tensors = [
                p._replace(
                    weight=p.weight.to(dtype), bias=None if p.bias is None else p.bias.to(dtype)
                )
                for p in tensors
            ]
        return training.run(self.plan, x, tensors, norms, operators)

    def _run(self, route: Route, backend: Backend, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        self.taken, self.reason, self.timings = backend.name, route.reason, route.timings
        packed = self._packed(route, backend, x)
        if _wants_gradients(x, tensors):
            weights, biases = self.folded(x.dtype)
            arguments = (self.plan, x, packed, weights, biases, step_gradients(x))
            return ops.differentiable(backend.run, *arguments)
        result: Tensor = backend.run(self.plan, x, packed)
        return result

    def tune_inside(self, backend: Backend, tuning: Tuning, x: Tensor) -> None:
        """Lets a back end measure, for such an x, what it chooses inside its ``run``."""
        if autocasts(x):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        backend.tune(self.plan, x, self._packed(Route(backend, "", tuning), backend, x))

    def _packed(self, route: Route, backend: Backend, x: Tensor) -> list[Tensor]:
        key = (backend.name, backend.settings(x), route.tuning)
        packed = self._packs.get(key)
        if packed is None:
            # A pack made in inference mode could not be used in autograd later.
            with torch.inference_mode(False), torch.no_grad():
                packed = backend.pack(self.plan, *self.folded(x.dtype), route.tuning)
            self._packs[key] = packed
        return packed

    def folded(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases by weight index as they are now, batch norms folded in."""
        weights, biases = fold_all(self.sources)
        return [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]

    def _live(self, x: Tensor) -> Tensor | None:
        """The call as a graph records it, from the parameters; nothing is kept here."""
        modules = all_modules(self.module)
        if self.match.batch or any(m.training for m in modules):
            return None
        assert self.watch is not None
        if any(getattr(s.owner, s.name, None) != s.value for s in self.watch.settings):
            return None
        if [c for m in modules for c in m._modules.values()] != self.watch.children:
            return None
        for m in modules:
            if m is not self.module and (m._forward_hooks or m._forward_pre_hooks):
                return None
        autocast = autocasts(x)
        route = self._route(x, autocast)
        backend = route.backend
        if backend is None:
            return None
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        tensors = [p.tensor() for s in self.sources for p in s.places()]
        needs_grad = _wants_gradients(x, tensors)
        if self.int8 is not None:
            route = self._in_int8(route, self.int8, x, needs_grad)
            backend = route.backend
            assert backend is not None
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not needs_grad:
            parameters = [parameters_of(s) for s in self.sources]
            options = self.options
            scales = self.int8.scales if self.int8 and backend is self.int8.backend else ()
            y = graph.call(x, parameters, self.plan, options.backend, options.winograd, scales)
            return y.flatten(1) if self.match.flat else y
        weights, biases = self.folded(x.dtype)
        # Not empty: AOTInductor's C++ runtime hands on a default list as None (torch 2.14).
        tuning = (0,) * len(self.plan.steps)
        packed = backend.pack(
            self.plan, [w.detach() for w in weights], [b.detach() for b in biases], tuning
        )
        if needs_grad:
            arguments = (self.plan, x, packed, weights, biases, step_gradients(x))
            y = ops.differentiable(backend.run, *arguments)
        else:
            y = backend.run(self.plan, x, packed)
        return y.flatten(1) if self.match.flat else y


def _wants_gradients(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call with this input and these parameters is recorded for gradients."""
    return torch.is_grad_enabled() and (
        x.requires_grad or any(t is not None and t.requires_grad for t in tensors)
    )


def network_of(module: nn.Module) -> Fusion | None:
    """What a network of fused modules knows of its whole; None for any other module."""
    found = module.__dict__.get(NETWORK)
    return found if isinstance(found, Fusion) else None


def fusion_of(module: nn.Module) -> Fusion | None:
    """What a fused module knows; None for any other."""
    fusion = module.__dict__.get(FUSION)
    return fusion if isinstance(fusion, Fusion) else None
