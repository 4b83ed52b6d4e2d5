"""``python -m inception_fused.bench.gpu``: the check with its defaults, without typer and rich."""

import sys

from .command import check

sys.exit(check())
