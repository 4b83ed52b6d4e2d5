"""What a module's forward executes: a record of its ATen operators over fake tensors.

Nothing is computed and nothing of the module changes. The record is in static single assignment:
an in-place operator gives its tensor a new :class:`Value`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

FUSION = "_inception_fused"
"""Attribute under which a fused module keeps what it knows, a ``fusion.Fusion`` or an outline."""

NETWORK = "_inception_fused_network"
"""Attribute under which a network of fused modules keeps the fusion of all that it computes."""


class Refused(Exception):
    """The module cannot be fused; the message is the reason, written for a user."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lives: parameter or buffer ``name`` of module ``owner``."""

    owner: nn.Module
    name: str

    def tensor(self) -> Tensor | None:
        """The tensor that is there now; AttributeError if the name is gone."""
        for tensors in (self.owner._parameters, self.owner._buffers):
            if self.name in tensors:
                return tensors[self.name]
        raise AttributeError(f"{type(self.owner).__name__} has no parameter {self.name}")


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One tensor of the record: an input, a parameter (``place``), or a result of ``op``.

    ``args`` and ``kwargs`` are the operator's, with every tensor replaced by its value; ``index``
    counts the results of an operator that has several. ``shape`` is (N, C, H, W) of the probe.
    """

    op: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    index: int = 0
    place: Place | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """``output`` is what forward returned, with values for tensors; ``cats`` all concatenations."""

    input: Value
    output: Any
    cats: tuple[Value, ...]
    refused: str | None


def all_modules(root: nn.Module) -> list[nn.Module]:
    """The module and every module below it, also those in plain attributes, lists and dicts."""
    found: dict[int, nn.Module] = {}
    queue: list[Any] = [root]
    while queue:
        item = queue.pop(0)
        if isinstance(item, nn.Module):
            if id(item) not in found:
                found[id(item)] = item
                queue += item._modules.values()
                queue += (v for k, v in item.__dict__.items() if not k.startswith("_"))
        elif isinstance(item, (list, tuple)):
            queue += (v for v in item if isinstance(v, (nn.Module, list, tuple, dict)))
        elif isinstance(item, dict):
            queue += (v for v in item.values() if isinstance(v, (nn.Module, list, tuple, dict)))
    return list(found.values())


def places(modules: list[nn.Module]) -> dict[int, Place]:
    """The place of every parameter and buffer of the modules, by the id of its tensor."""
    found: dict[int, Place] = {}
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    found.setdefault(id(tensor), Place(module, name))
    return found


_UPDATING = ("_native_batch_norm_legit", "_batch_norm_with_update")
"""Operators that may write to buffers: batch norms that update their running statistics."""


def _normalised(func: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """The results of a batch norm in eval mode over fake tensors; None for any other operator.

    Fake tensors have it decomposed into a dozen operators, most of the time that a trace takes.
    """
    if func is not torch.ops.aten._native_batch_norm_legit_no_training.default:
        return None
    x, *tensors = args[:5]
    if any(t is not None and t.shape != x.shape[1:2] for t in tensors):
        return None
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operator that runs while it is active, composite ones decomposed."""

    def __init__(self, known: Mapping[int, Place]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cats: list[Value] = []
        self.refused: str | None = None
        self._places = known
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # an id must not be used a second time
        self._storages: dict[int, set[int]] = {}

    def start(self, x: Tensor) -> Value:
        """Makes x an input of the record."""
        return self._enter(x, Value("input", shape=tuple(x.shape)))

    def value(self, tensor: Tensor) -> Value:
        """The value that the tensor has now."""
        found = self._values.get(id(tensor))
        if found is None:
            place = self._places.get(id(tensor))
            op = "parameter" if place else "constant"
            found = self._enter(tensor, Value(op, place=place, shape=tuple(tensor.shape)))
        return found

    def describe(self, result: Any) -> Any:
        """The result of a forward with every tensor replaced by its value."""
        return tree_map_only(Tensor, self.value, result)

    def _enter(self, tensor: Tensor, value: Value) -> Value:
        if id(tensor) not in self._values:
            self._alive.append(tensor)
            storage = tensor.untyped_storage()._cdata
            self._storages.setdefault(storage, set()).add(id(tensor))
        self._values[id(tensor)] = value
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten":
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        elif func.namespace == "prim":
            return func(*args, **kwargs)
        recorded_args, recorded_kwargs = self.describe((args, kwargs))
        written = self._written(func, args, kwargs)
        result = _normalised(func, args)
        if result is None:
            result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        op = name if func.namespace == "aten" else f"{func.namespace}.{name}"
        outputs = result if isinstance(result, (list, tuple)) else (result,)
        for index, tensor in enumerate((*outputs, *written)):
            if isinstance(tensor, Tensor):
                value = Value(op, recorded_args, recorded_kwargs, index, shape=tuple(tensor.shape))
                self._enter(tensor, value)
                if op == "cat":
                    self.cats.append(value)
        return result

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors that the operator writes to; notes a write that must not be."""
        if not func._schema.is_mutable:
            return []
        written = []
        for i, argument in enumerate(func._schema.arguments):
            tensor = args[i] if i < len(args) else kwargs.get(argument.name)
            if not (argument.is_write and isinstance(tensor, Tensor)):
                continue
            written.append(tensor)
            value = self.value(tensor)
            if value.op == "input":
                self.refused = f"{func} writes to the module's input"
            elif func.overloadpacket.__name__ in _UPDATING:
                continue
            elif value.op in ("parameter", "constant"):
                name = value.place.name if value.place else "a tensor that is no parameter"
                self.refused = f"{func} writes to {name}"
            elif len(self._storages[tensor.untyped_storage()._cdata]) > 1:
                self.refused = f"{func} writes through a view"
        return written


@dataclass(frozen=True, slots=True)
class Setting:
    """A plain attribute that a forward may read, such as a stride, and its value so far."""

    owner: nn.Module
    name: str
    value: Any


_PLAIN = (bool, int, float, str, tuple, type(None))
_NEVER_READ_IN_EVAL = frozenset({"training", "momentum"})


def settings(modules: list[nn.Module]) -> list[Setting]:
    """The attributes of plain values that the code of the modules' classes names."""
    return [
        Setting(module, name, value)
        for module in modules
        for name, value in module.__dict__.items()
        if isinstance(value, _PLAIN) and name in names_in_code(type(module)) - _NEVER_READ_IN_EVAL
    ]


_NAMES: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def names_in_code(kind: type) -> frozenset[str]:
    """Every name that the methods of a module class use; not those of ``nn.Module`` itself."""
    if (known := _NAMES.get(kind)) is not None:
        return known
    found: set[str] = set()
    for base in kind.__mro__:
        if base not in (nn.Module, object):
            for name, member in vars(base).items():
                if callable(member) and name not in ("__init__", "extra_repr"):
                    code = getattr(inspect.unwrap(member), "__code__", None)
                    found.update(_names(code) if code else ())
    return _NAMES.setdefault(kind, frozenset(found))


def _names(code: CodeType) -> Iterator[str]:
    """The names in the code and in that of functions and comprehensions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Eval mode for the modules, set without calling ``train``; the flags are put back."""
    flags = [m.training for m in modules]
    for m in modules:
        m.training = False
    try:
        yield
    finally:
        for m, flag in zip(modules, flags, strict=True):
            m.training = flag


@contextmanager
def originals(modules: list[nn.Module]) -> Iterator[None]:
    """Makes fused modules run the forward of their original class."""
    spots = [(m.__dict__, k) for m in modules for k in (FUSION, NETWORK) if k in m.__dict__]
    taken = [(attributes, name, attributes.pop(name)) for attributes, name in spots]
    try:
        yield
    finally:
        for attributes, name, value in taken:
            attributes[name] = value


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch from logging a traceback for a forward that fails on a probe."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


class State:
    """A shallow copy of what modules hold, to see and to undo what a forward stores on them."""

    _CONTAINERS = (dict, list, set)

    def __init__(self, modules: list[nn.Module]) -> None:
        self._saved = [(m, self._copy(m)) for m in modules]

    @classmethod
    def _copy(cls, module: nn.Module) -> dict[str, Any]:
        return {
            k: (v, v.copy() if isinstance(v, cls._CONTAINERS) else None)
            for k, v in module.__dict__.items()
        }

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(a[k] is b[k] for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
        return bool(a == b)

    def restore(self) -> str | None:
        """Puts everything back; returns the name of an attribute that had changed."""
        changed = None
        for module, saved in self._saved:
            for name in module.__dict__.keys() - saved.keys():
                changed = name
                del module.__dict__[name]
            for name, (value, content) in saved.items():
                if module.__dict__.get(name, self) is not value:
                    changed = name
                    module.__dict__[name] = value
                if content is not None and not self._same(value, content):
                    changed = name
                    value[:] = content if isinstance(value, list) else value[:]
                    if not isinstance(value, list):
                        value.clear()
                        value.update(content)
        return changed


def trace(
    module: nn.Module,
    shape: tuple[int, int, int, int],
    mode: Any,
    memory_format: torch.memory_format = torch.contiguous_format,
    as_set: bool = False,
) -> Trace:
    """Records the module's forward for one input.

    Args:
        shape: (N, C, H, W) of the probe.
        mode: the FakeTensorMode to run under, made with ``allow_non_fake_inputs=True``.
        memory_format: of the probe.
        as_set: with the modules' flags ``training`` as they are, instead of in eval mode.

    Raises:
        Refused: forward cannot run on the probe. What stays forbidden in a forward that did run
            is in ``Trace.refused``.
    """
    modules = all_modules(module)
    known = places(modules)
    held = (p.tensor() for p in known.values())
    like = next((t for t in held if t is not None and t.is_floating_point()), None)
    if like is None:
        raise Refused("it has no parameters")
    recorder = Recorder(known)
    with originals(modules):
        state = State(modules)
        changed = None
        try:
            with quiet(), evaluating([] if as_set else modules), torch.no_grad(), mode:
                x = torch.empty(shape, dtype=like.dtype, device=like.device)
                x = x.contiguous(memory_format=memory_format)
                with recorder:
                    source = recorder.start(x)
                    output = recorder.describe(type(module).forward(module, x))
        except Exception as error:
            raise Refused(_first_line(error)) from error
        finally:
            changed = state.restore()
    refused = recorder.refused
    if changed is not None:
        refused = f"its forward stores state in {changed!r}"
    return Trace(source, output, tuple(recorder.cats), refused)


def _first_line(error: Exception) -> str:
    name = type(error).__name__
    if name in ("DataDependentOutputException", "DynamicOutputShapeException"):
        return f"its forward depends on the values of a tensor ({error})"
    text = str(error).strip().partition("\n")[0]
    return f"its forward failed on a probe: {name}: {text[:200]}"
