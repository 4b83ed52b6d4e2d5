"""The arguments of a training step, from where a module keeps its parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..match import NormSource, Source
from ..trace import Place
from .forward import Parameters
from .norm import BatchNorm


def parameters_of(sources: Sequence[Source]) -> list[Parameters]:
    """What is at the places of the sources now, by weight index."""
    found = []
    for source in sources:
        weight, norm = _tensor(source.weight), source.norm
        assert weight is not None
        affine = (norm.gamma, norm.beta) if norm else (None, None)
        found.append(Parameters(weight, _tensor(source.bias), *map(_tensor, affine)))
    return found


def norms_of(sources: Sequence[Source]) -> list[BatchNorm | None]:
    """The norms of the sources as they are now, by weight index."""
    return [None if s.norm is None else _norm(s.norm) for s in sources]


def _tensor(place: Place | None) -> Tensor | None:
    return None if place is None else place.tensor()


def _norm(source: NormSource) -> BatchNorm:
    eps = source.eps
    if source.eps_owner is not None:
        eps = float(source.eps_owner.__dict__["eps"])
    mean, var = _tensor(source.mean), _tensor(source.var)
    if not source.batch or source.mean is None:
        return BatchNorm(eps, source.batch, mean, var)
    owner = source.mean.owner
    assert isinstance(owner, _BatchNorm)
    return BatchNorm(eps, True, mean, var, owner.momentum, owner.num_batches_tracked)
