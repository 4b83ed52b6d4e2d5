"""Fused Inception (GoogLeNet) modules for PyTorch.

Layers, each importing only those before it::

    spec       what the user means: branches of stages; the paper's nine modules
    plan       the lowered form that every back end runs
    lower      from the one to the other
    reference  the plan in plain torch operators, and its gradient
    weights    batch norms folded into convolutions
    cuda       what the CUDA kernels take
    ops        the operator: native libraries, shape functions, autograd
    training   the plan with the statistics of the batch, and its gradient
    backends   one record per back end, and the choice
    modes      whether a plan holds with a module's training flags as they are
    gradients  who computes the gradients of convolutions
    module     FusedInception, FusedNetwork
    fuse       fuse, unfuse, explain, on any model
    tune       measures what can run each fused module and keeps the fastest: ``candidates`` are
               tried by ``trial``, and the ``figures`` of it kept by ``cache``
    cli        the command line

``models`` has the paper's network and its plain modules.
"""

from importlib.metadata import version as _version

from . import models
from .backends import backends
from .fuse import explain, fuse, unfuse
from .gradients import gradients
from .module import FusedInception, FusedNetwork
from .spec import GOOGLENET, Spec
from .tune import tune

__version__ = _version("inception-fused")

__all__ = [
    "GOOGLENET",
    "FusedInception",
    "FusedNetwork",
    "Spec",
    "__version__",
    "backends",
    "explain",
    "fuse",
    "gradients",
    "models",
    "tune",
    "unfuse",
]
