"""The identity network: whose face it is, learned with ArcFace's loss (Deng 2019).

It sees what the evaluation shows a recogniser: the aligned face, and nothing around it. Its pooled
output is the embedding, so `companion.faces.recognisers` and any transformers user can load it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from companion.embedded.augment import augment
from companion.embedded.faces import load_faces
from companion.embedded.judges import SEED, build, save_judge, settle
from companion.embedded.losses import arcface_loss
from fusionlib.profiles import Profile
from fusionlib.training.checkpoints import start_weights
from fusionlib.training.loop import Batch, Run, fit

MARGIN = 0.3
"""Of ArcFace, radians. With the 0.5 of the paper, four pictures of each person are too few."""

SCALE = 32.0
"""Of ArcFace: the inverse temperature."""


class _Embed(nn.Module):
    """The network, and a centre for each person of the training set that only the loss needs."""

    def __init__(self, network: PreTrainedModel, people: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.centres = nn.Parameter(torch.randn(people, width) / width**0.5)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(pixel_values).pooler_output.flatten(1), self.centres


def train(
    profile: Profile,
    out: Path | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = True,
    start_from: Path | None = None,
) -> Run:
    """Train the profile's identity network on its training people; write ``identity/``.

    The faces are aligned first, and kept under ``runs/faces``.

    Args:
        profile: architecture, recipe and shards.
        out: the checkpoint's folder; default ``profile.base_model``.
        minutes: stop after this time with a checkpoint.
        steps: overrides the recipe's length.
        resume: go on from the checkpoint if there is one.
        start_from: a checkpoint folder whose ``identity/`` to begin with.
    """
    recipe, sizes = profile.recipe("identity"), profile.architecture["identity"]
    size = sizes["image_size"]
    runs = Path(profile.training.runs)
    faces = load_faces(profile.training.shards, size, runs / "faces", detector=profile.detector)
    torch.manual_seed(profile.seed + SEED)
    network = build(AutoModel, sizes)
    start = start_weights(network, start_from and start_from / "identity", "identity")
    person = torch.from_numpy(faces.person)
    with torch.no_grad():
        blank = torch.zeros(2, 3, size, size).to(memory_format=torch.channels_last)
        width = network.eval()(blank).pooler_output.flatten(1).shape[1]

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(faces), (recipe.batch_size,), generator=generator)
        pixels = augment(faces.batch(index), generator)
        pixels = pixels.to(network.device, memory_format=torch.channels_last)
        return pixels, person[index].to(network.device)

    def loss(embed: nn.Module, batch: Batch) -> dict[str, Tensor]:
        pixels, wanted = draw(batch.generator)
        embeddings, centres = embed(pixels)
        value = arcface_loss(embeddings, centres, wanted, margin=MARGIN, scale=SCALE)
        with torch.no_grad():
            nearest = nn.functional.normalize(centres.float(), dim=-1)
            hits = (embeddings.float() @ nearest.T).argmax(1) == wanted
        return {"loss": value, "top1": hits.float().mean()}

    folder = runs / profile.name / "identity"
    run = fit(
        _Embed(network, faces.people, width),
        loss,
        recipe,
        folder,
        seed=profile.seed + SEED,
        steps=steps,
        minutes=minutes,
        resume=resume,
        name="identity",
        start=start,
    )
    settle(network, lambda generator: draw(generator)[0], profile.seed + SEED)
    save_judge(network, size, Path(out or profile.base_model) / "identity", folder)
    return run
