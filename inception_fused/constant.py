"""Marks functions whose result a compiled graph may take as constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant_result(function: Function) -> Function:
    """``torch.compiler.assume_constant_result``, whose import takes a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
