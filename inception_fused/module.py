"""A fused module: the original's instance, whose forward runs the plan when it may.

The class of the instance becomes a subclass of the original class, so state_dict keys, attributes,
hooks and ``isinstance`` stay as they were. Weights are read from where the original keeps them.
"""

from __future__ import annotations

import copy
import copyreg
import inspect
import weakref
from typing import Any

from torch import nn

from .examine import examine
from .fusion import Fusion, Options
from .match import Match
from .models import Branches
from .outline import Outline
from .spec import Spec
from .trace import FUSION, NETWORK


class Fused(nn.Module):
    """What all fused modules are: the original's instance, with a forward that asks first.

    A call runs the plan of the whole if there is one and it may, else that of the module, else the
    original forward.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            for name in (NETWORK, FUSION):
                fusion = self.__dict__.get(name)
                if fusion is not None and (y := fusion(args[0])) is not None:
                    return y
        return super().forward(*args, **kwargs)

    def refresh(self) -> None:
        """Makes the next call read the weights again, after a write that cannot be seen."""
        for fusion in _fusions(self):
            fusion.drop()

    def train(self, mode: bool = True) -> Fused:
        Fused.refresh(self)
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Fused:
        Fused.refresh(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica: nn.Module = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        for name in (FUSION, NETWORK):  # their places are those of the first device
            replica.__dict__.pop(name, None)
        return replica

    def __deepcopy__(self, memo: dict[int, Any]) -> Fused:
        reduced: Any = super().__reduce_ex__(4)
        make, args, state, *_ = reduced
        new: Any = make(*args)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(state, memo))
        assert isinstance(new, Fused)
        for copied in _fusions(new):
            if isinstance(copied, Fusion):
                copied.begin()
        if any(isinstance(f, Fusion) and f.changed() for f in _fusions(self)):
            unswap(new)
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, args, state, *rest = reduced
        base = original_class(self)
        args = tuple(base if a is type(self) else a for a in args)
        if make.__name__ == "__newobj__":  # pickle insists on the class of the object for it
            make, args = copyreg._reconstructor, (base, object, None)  # type: ignore[attr-defined]
        if isinstance(state, dict):
            state = {k: v for k, v in state.items() if k not in (FUSION, NETWORK)}
        return (make, args, state, *rest)


class FusedInception(Fused):
    """An Inception module that runs fused, in eval and in training mode.

    ``FusedInception(spec)`` builds a new, trainable one with the parameters of
    ``models.Inception.from_spec(spec)``; :func:`inception_fused.fuse` makes those of a model so.
    Input (N, C, H, W); output (N, C', H', W') as the original gives. In training mode batch norms
    use the statistics of the batch, as in the original. Wherever the plan cannot run, the original
    forward does; ``inception_fused.explain`` says why.

    Saved or pickled it is the plain original; ``copy.deepcopy`` stays fused.

    Args:
        spec: the branches.
        batch_norm: a batch norm behind every convolution, which then has no bias.
        backend: "auto" or the name of a back end.
        winograd: whether the CPU back end may compute 3x3 and 5x5 convolutions by Winograd's
            minimal filtering, which is faster and rounds differently: about as much as direct
            convolution, but small integers do not stay exact.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> FusedInception:
        if cls is FusedInception:
            return _build(*args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if FUSION not in self.__dict__:
            super().__init__(*args, **kwargs)

    @classmethod
    def from_module(
        cls, module: nn.Module, backend: str = "auto", winograd: bool = True
    ) -> FusedInception:
        """A fused module that shares parameters and submodules with ``module``, which stays plain.

        ``backend`` and ``winograd`` are those of the class.

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
        return swap(twin, verdict.match, Options(backend, winograd))


class FusedNetwork(Fused):
    """A module around fused ones, up to a whole GoogLeNet, that runs as one plan in eval mode.

    Made by :func:`inception_fused.fuse`. Input (N, C, H, W); output as the original gives, for a
    network with a classifier (N, classes). Where no back end can run the whole, the original
    forward runs, with the fused modules inside.
    """


def _forward(self: Fused, x: Any) -> Any:
    return Fused.forward(self, x)


def _fusions(module: nn.Module) -> list[Fusion | Outline]:
    """What a fused module knows: of itself, and of itself as a network."""
    return [module.__dict__[name] for name in (FUSION, NETWORK) if name in module.__dict__]


_CLASSES: weakref.WeakKeyDictionary[type, dict[type, type]] = weakref.WeakKeyDictionary()


def fused_class(base: Any, kind: type[Fused] = FusedInception) -> type:
    """The subclass of ``kind`` and ``base`` that fused instances of ``base`` have."""
    classes = _CLASSES.setdefault(base, {})
    found = classes.get(kind)
    if found is None:
        names: dict[str, Any] = {
            k: getattr(base, k) for k in ("__module__", "__qualname__", "__doc__")
        }
        if [*inspect.signature(base.forward).parameters] == ["self", "x"]:
            names["forward"] = _forward  # torch.export and torch.fx read the signature
        found = classes[kind] = type(base.__name__, (kind, base), names)
    return found


def original_class(module: nn.Module) -> type:
    """The class that a fused module has without the fusion."""
    return type(module).__bases__[1]


def changed(module: Fused) -> str | None:
    """What was changed inside a fused module so that it must be fused again; None if nothing."""
    return next((reason for f in _fusions(module) if (reason := f.changed())), None)


def swap(module: nn.Module, match: Match, options: Options) -> FusedInception:
    """Makes the module, in place, a fused one."""
    fusion = module.__dict__[FUSION] = Fusion(module, match, options)
    fusion.begin()
    module.__class__ = fused_class(type(module))
    assert isinstance(module, FusedInception)
    return module


def swap_outlined(outline: Outline) -> None:
    """Makes the owner of the outline, in place, a module whose regions run fused."""
    module = outline.owner
    module.__dict__[FUSION] = outline
    module.__class__ = fused_class(
        type(module), FusedNetwork if outline.network else FusedInception
    )


def swap_network(module: nn.Module, match: Match, options: Options) -> None:
    """Makes the module, in place, one that runs as a whole where it can."""
    fusion = module.__dict__[NETWORK] = Fusion(module, match, options, network=True)
    fusion.begin()
    if not isinstance(module, Fused):
        module.__class__ = fused_class(type(module), FusedNetwork)


def unswap(module: Fused) -> None:
    """Gives the module its original class back."""
    for name in (FUSION, NETWORK):
        module.__dict__.pop(name, None)
    module.__class__ = original_class(module)


def _build(
    spec: Spec, batch_norm: bool = False, backend: str = "auto", winograd: bool = True
) -> FusedInception:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec must be a Spec, got {type(spec).__name__}")
    module = Branches(spec, batch_norm)
    verdict = examine(module)
    if verdict is None or verdict.match is None:
        reason = verdict.reason if verdict else "it has no convolution"
        raise ValueError(f"spec cannot be fused: {reason}")
    return swap(module, verdict.match, Options(backend, winograd))
