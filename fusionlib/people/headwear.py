"""Hats."""
from __future__ import annotations
from fusionlib.people.hair import Mesh
HEADWEAR=()
def headwear_mesh(kind,color,vertices): return None
