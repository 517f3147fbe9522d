"""Make `likeness.jpg`: pictures by the method of people that the models have never seen.

Each row shows a person's reference and the pictures that the fused adapter makes from it. All rows
use the same prompts and the same seed. The people were chosen to differ; the pictures were not
selected.
"""

from pathlib import Path

from companion.figures.grids import picture_grid
from companion.methods.fusion import fused
from fusionlib.inputs.images import load_image
from fusionlib.profiles import load_profile
from fusionlib.profiles.loading import load_pipeline

PEOPLE = (14, 36, 43, 72, 84)
PROMPTS = {
    "laughing, in a garden": "a photo of a laughing person in a garden",
    "angry, in the snow": "a photo of an angry person in the snow",
    "astronaut in space": "a photo of an astronaut in space",
    "film noir": "a film noir picture of a surprised person in the city",
    "comic": "a comic of a laughing person on a beach",
    "line art": "line art of a person",
}
SEED = 3

settings = load_profile("embedded")
method = fused(load_pipeline(settings), **settings.sampling)
rows = []
for person in PEOPLE:
    reference = load_image(Path(settings.heldout or "") / f"{person:04d}_0.jpg")
    faces = method.prepare([reference])
    rows.append([reference, *(method.generate(text, faces, SEED) for text in PROMPTS.values())])
grid = picture_grid(rows, columns=["reference", *PROMPTS], references=1)
grid.save(Path(__file__).with_name("likeness.jpg"), quality=90)
