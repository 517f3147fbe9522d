"""Make `hero.png`, the first picture of the README and the book: `python book/images/hero.py`."""

from pathlib import Path

import torch

from fusionlib.figures import picture_grid
from fusionlib.images import load_image
from fusionlib.loading import load_pipeline
from fusionlib.profiles import load_profile
from fusionlib.study import load_people

PROMPTS = ["a photo of a person on a beach", "a photo of a person in a garden"]
SEEDS = [0, 1]

settings = load_profile("embedded")
pipeline = load_pipeline(settings)
pipeline.set_progress_bar_config(disable=True)
rows = []
for person in load_people(settings.heldout, 4, only={"style": "photo"}):
    reference = load_image(person.references[0])
    row = [reference]
    for prompt in PROMPTS:
        for seed in SEEDS:
            row += pipeline(
                prompt,
                references=[reference],
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                generator=torch.Generator().manual_seed(seed),
            ).images
    rows.append(row)
columns = ["reference", *(prompt for prompt in PROMPTS for _ in SEEDS)]
grid = picture_grid(rows, columns=columns, references=1)
grid.save(Path(__file__).with_name("hero.png"), optimize=True)
