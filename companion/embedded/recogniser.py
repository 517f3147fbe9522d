"""The identity network: an embedding of faces, learned with ArcFace's loss (Deng 2019).

Like any recogniser of the evaluation, it sees the aligned face and nothing around it. Its pooled
output is the embedding, so `companion.faces.recognisers` and any transformers user can load it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from companion.embedded.augment import augment
from companion.embedded.faces import load_faces
from companion.embedded.judges import SEED, build, judge_folder, train_judge
from companion.embedded.losses import arcface_loss
from fusionlib.profiles import Profile
from fusionlib.training.checkpoints import start_weights
from fusionlib.training.loop import Batch, Run
from fusionlib.training.runs import DEFAULTS, RunOptions

MARGIN = 0.3
"""Margin of ArcFace, radians. For the paper's 0.5, four pictures of each person are too few."""

SCALE = 32.0
"""Scale of ArcFace, an inverse temperature."""


class _Embed(nn.Module):
    """The network, and a centre for each person of the training set that only the loss needs."""

    def __init__(self, network: PreTrainedModel, people: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.centres = nn.Parameter(torch.randn(people, width) / width**0.5)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(pixel_values).pooler_output.flatten(1), self.centres


def train(profile: Profile, options: RunOptions = DEFAULTS) -> Run:
    """Train the profile's identity network on its training people; write ``identity/``.

    The faces are aligned first, and cached under ``runs/faces``.

    Args:
        profile: Architecture, recipe and shards.
        options: Options of the run, see `train_judge`. It may start from a checkpoint folder's
            ``identity/``.
    """
    recipe, sizes = profile.recipe("identity"), profile.architecture["identity"]
    size = sizes["image_size"]
    judge_folder(profile, "identity", options)
    cache = Path(profile.training.runs) / "faces"
    faces = load_faces(profile.training.shards, size, cache, detector=profile.detector)
    torch.manual_seed(profile.seed + SEED)
    network = build(AutoModel, sizes)
    source = options.start_from and options.start_from / "identity"
    start = start_weights(network, source, "identity")
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

    embed = _Embed(network, faces.people, width)
    return train_judge(network, embed, loss, draw, profile, "identity", options, start)
