"""Make `portraits.jpg`, the first picture of the README and the book, with the embedded model."""

from pathlib import Path

from fusionlib.figures import picture_grid
from fusionlib.images import load_image
from fusionlib.loading import load_pipeline
from fusionlib.methods.fusion import fused
from fusionlib.profiles import load_profile
from fusionlib.study import load_people, noise_seed

PEOPLE = 4
PROMPTS = {
    "laughing": "a photo of a laughing person",
    "angry": "a photo of an angry person",
    "in a garden": "a photo of a person in a garden",
    "watercolor": "a watercolor painting of a person",
    "film noir": "a black and white film noir picture of a person",
}

settings = load_profile("embedded")
pipeline = load_pipeline(settings)
method = fused(
    pipeline,
    num_inference_steps=settings.num_inference_steps,
    guidance_scale=settings.guidance_scale,
)
people = load_people(settings.heldout or "", PEOPLE, only={"style": "photo"})
rows = []
for person in people:
    face = load_image(person.references[0])
    seeds = [noise_seed(person.name, 0)] * len(PROMPTS)
    rows.append([face, *method.generate([[face]] * len(PROMPTS), list(PROMPTS.values()), seeds)])
grid = picture_grid(rows, columns=["reference", *PROMPTS], references=1)
grid.save(Path(__file__).with_name("portraits.jpg"), quality=90)
