"""Make `people.jpg`, the rendered people on the first page of the book."""

from pathlib import Path

from companion.figures.grids import picture_grid
from fusionlib.inputs.images import load_image
from fusionlib.profiles import load_profile

PEOPLE, VIEWS = (3, 6, 31, 37), 7

folder = Path(load_profile("embedded").heldout or "")
rows = [[load_image(folder / f"{p:04d}_{v}.jpg") for v in range(VIEWS)] for p in PEOPLE]
grid = picture_grid(rows, references=1)
grid.save(Path(__file__).with_name("people.jpg"), quality=90)
