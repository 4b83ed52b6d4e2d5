"""What is measured: models with deterministic weights, and the images they run on."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inception_fused.models import Branches, GoogLeNet
from inception_fused.spec import GOOGLENET, GOOGLENET_SIZE

from . import kernelbench

IMAGE = 224
"""Height and width in pixels of the photographs as the networks see them."""

NETWORKS = {"torchvision": "GoogLeNet (torchvision)", "paper": "GoogLeNet (paper)"}
KERNELBENCH = {
    "l3-6": ("KernelBench L3/6, one module", kernelbench.module, kernelbench.activations),
    "l3-7": ("KernelBench L3/7, GoogLeNet", kernelbench.Network, kernelbench.images),
}
CHAIN = "chain"
NAMES = (*NETWORKS, CHAIN, *KERNELBENCH, *GOOGLENET)

# Mean and standard deviation of ImageNet per channel, which torchvision's weights expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """A model and its inputs. ``inputs(n)`` is a contiguous float32 batch of n."""

    name: str
    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]


def find(name: str) -> Case:
    """The case of a name in :data:`NAMES`, or of ``path.py:function``.

    The function returns a model, which then gets the photographs, or (model, example input).

    Raises:
        ValueError: there is no such case, file or function, or it raises.
    """
    if name in GOOGLENET:
        return Case(name, f"module {name}", partial(_module, name), partial(_activations, name))
    if name == CHAIN:
        return Case(CHAIN, "nine modules in a chain", _chain, partial(_activations, "3a"))
    if name == "torchvision":
        return _torchvision()
    if name == "paper":
        return Case(name, NETWORKS[name], partial(_frozen, GoogLeNet), photographs)
    if name in KERNELBENCH:
        title, make, inputs = KERNELBENCH[name]
        return Case(name, title, partial(_frozen, make), inputs)
    if ".py:" in name:
        return _own(name)
    raise ValueError(
        f"--model must be one of {', '.join(NAMES)}, modules or path.py:function, got {name!r}"
    )


def photographs(batch: int) -> Tensor:
    """Crops of scikit-learn's two photographs, (batch, 3, 224, 224), normalised as for ImageNet.

    Deterministic: each pass over the two photographs takes smaller crops from other places; only
    the files are read, scikit-learn is not imported.
    """
    import numpy as np
    from PIL import Image

    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ValueError("the photographs are scikit-learn's: pip install scikit-learn")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "images"
    pictures = [Image.open(folder / f"{name}.jpg").convert("RGB") for name in ("china", "flower")]
    images = []
    for i in range(batch):
        picture = pictures[i % 2]
        number = i // 2
        side = round(min(picture.size) * (1 - 0.08 * (number % 8)))
        left = (picture.width - side) * (number * 5 % 8) // 7
        top = (picture.height - side) * (number * 3 % 8) // 7
        crop = picture.resize((IMAGE, IMAGE), box=(left, top, left + side, top + side))
        images.append(np.asarray(crop))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (_MEAN, _STD))
    return ((pixels - mean) / std).contiguous()


def calibrate(model: nn.Module, batch: Tensor) -> nn.Module:
    """Sets every running statistic to that of the batch, as training would have; eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the calls
        norm.train()
    with torch.no_grad():
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval().requires_grad_(False)


def _seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _torchvision() -> Case:
    try:
        from torchvision.models import googlenet
    except ImportError:
        raise ValueError("--model torchvision needs torchvision: pip install torchvision") from None

    def build() -> nn.Module:
        model = _seeded(lambda: googlenet(weights=None, aux_logits=False, init_weights=True))
        return calibrate(model, photographs(8))

    return Case("torchvision", NETWORKS["torchvision"], build, photographs)


def _frozen(make: Callable[[], nn.Module]) -> nn.Module:
    model: nn.Module = _seeded(make).eval().requires_grad_(False)
    return model


def _module(name: str) -> nn.Module:
    """One of the paper's nine with batch norm (conv + BN + ReLU, a true 5x5)."""
    model = _seeded(partial(Branches, GOOGLENET[name], batch_norm=True))
    return calibrate(model, _activations(name, 2))


def _chain() -> nn.Module:
    """All nine, with the max pools between the stages."""
    layers: list[nn.Module] = []
    size = GOOGLENET_SIZE["3a"]
    for name, spec in GOOGLENET.items():
        if GOOGLENET_SIZE[name] != size:
            size = GOOGLENET_SIZE[name]
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        layers.append(_seeded(partial(Branches, spec, batch_norm=True)))
    return calibrate(nn.Sequential(*layers), _activations("3a", 2))


def _activations(name: str, batch: int) -> Tensor:
    """What a module gets from the one before: half zeros, half the positive side of a normal."""
    size = GOOGLENET_SIZE[name]
    shape = (batch, GOOGLENET[name].in_channels, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).relu()


def _own(name: str) -> Case:
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--model {name}: there is no file {file}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    with _named(name, path):
        module_spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if isinstance(make, nn.Module):
        raise ValueError(f"--model {name}: {function} is a model, not a function that returns one")
    if not callable(make):
        raise ValueError(f"--model {name}: {file} has no function {function!r}")

    def call() -> tuple[nn.Module, Tensor | None]:
        with _named(name, path):
            made = _seeded(make)
        model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module) or not isinstance(example, Tensor | None):
            raise ValueError(f"--model {name}: must return a model or (model, example input)")
        return model.eval().requires_grad_(False), example

    model, example = call()

    def inputs(batch: int) -> Tensor:
        if example is None:
            return photographs(batch)
        return example[torch.arange(batch) % len(example)].contiguous()

    with _named(name, path), torch.no_grad():
        model(inputs(1))
    return Case(name, f"{path.stem}:{function}", lambda: call()[0], inputs)


@contextmanager
def _named(name: str, path: Path) -> Iterator[None]:
    """Turns what the user's file raises into one line that says where."""
    try:
        yield
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ValueError(f"--model {name}: {where}: {type(error).__name__}: {error}") from error
