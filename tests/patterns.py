"""Writes docs/patterns.md: every style of the zoo, fused or refused, and the largest difference.

Run from the repository's root: ``python -m tests.patterns``.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import zoo

from inception_fused import FusedInception, explain, fuse

_HEAD = """# Patterns

Written by `python -m tests.patterns`; the models are those of `tests/zoo.py`. Difference: largest
absolute difference of the CPU back end from the original on random inputs, relative to the largest
output.

| pattern | result | difference |
|---|---|---|
"""


def rows() -> list[tuple[str, str, str]]:
    """(pattern, result, difference) for each model of the zoo."""
    found = []
    for name in (*zoo.FUSED, *zoo.REFUSED):
        model = zoo.make(name)
        x = torch.randn(2, zoo.C, 14, 14)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            wanted = model(x) if name in zoo.FUSED else None
            fuse(model)
            if isinstance(model, FusedInception) and wanted is not None:
                difference = float((model(x) - wanted).abs().max() / wanted.abs().max())
                found.append((name, "fused", f"{difference:.1e}"))
            else:
                found.append((name, f"refused: {explain(model).lines[-1].reason}", ""))
    return found


if __name__ == "__main__":
    text = _HEAD + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in rows())
    Path("docs/patterns.md").write_text(text)
    print(text)
