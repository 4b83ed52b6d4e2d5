"""Tiles."""
from typing import NamedTuple
class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
