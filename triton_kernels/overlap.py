"""Whether tensors share elements: the rules of ``csrc/check.h``, in Python."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def elements_are_distinct(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """True if no two indices name one element; on the side of caution."""
    reach = 0  # largest offset of the dimensions so far
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if size == 1:
            continue
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def may_overlap(a: Tensor, b: Tensor) -> bool:
    """True if two tensors of one type may share an element.

    Exact for separate memory and for two ranges of one dimension of a larger tensor, such as its
    channels; otherwise on the side of caution.
    """
    if a.numel() == 0 or b.numel() == 0:
        return False
    bytes_apart = b.data_ptr() - a.data_ptr()
    if bytes_apart < 0:
        return may_overlap(b, a)
    item = a.element_size()
    last = sum((n - 1) * stride for n, stride in zip(a.shape, a.stride(), strict=True))
    if bytes_apart >= (last + 1) * item:
        return False
    if a.dim() != b.dim() or bytes_apart % item:
        return True
    return not any(_are_ranges(a, b, d, bytes_apart // item) for d in range(a.dim()))


def _are_ranges(a: Tensor, b: Tensor, d: int, apart: int) -> bool:
    """Whether both are ranges of dimension d of one tensor, that of b behind that of a."""
    stride = a.stride(d)
    if stride != b.stride(d) or stride <= 0 or apart % stride:
        return False
    for i in range(a.dim()):
        same = a.shape[i] == b.shape[i] and (a.shape[i] == 1 or a.stride(i) == b.stride(i))
        if i != d and not same:
            return False
    start = apart // stride
    sizes = [*a.shape]
    sizes[d] = start + b.shape[d]
    return start >= a.shape[d] and elements_are_distinct(sizes, a.stride())
