"""csrc/kinds.def and the enums of spec.py are one table."""

import re
from pathlib import Path

from inception_fused.spec import Activation, Kind

ROWS = (Path(__file__).parent.parent / "csrc" / "kinds.def").read_text()


def rows(macro: str) -> dict[str, int]:
    return {n: int(v) for n, v in re.findall(rf"^{macro}\((\w+), (\d+)\)", ROWS, re.MULTILINE)}


def test_kinds_and_activations_are_the_same_in_both_languages() -> None:
    assert rows("KIND") == {k.name: k.value for k in Kind}
    assert rows("ACTIVATION") == {a.name: a.value for a in Activation}
