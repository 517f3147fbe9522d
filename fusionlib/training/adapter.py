"""The fusion adapter: Linear_kf and Linear_vf trained over the frozen base (Section 3.2).

With the reference shown clean at timestep 0, its hidden states h_f depend on nothing that is
trained or drawn. Where they fit in memory they are computed once for each reference picture
(``cache_references``), otherwise in every step.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from fusionlib.adapter import FusionAdapter
from fusionlib.profiles import Profile
from fusionlib.reference import encode_references
from fusionlib.training.checkpoints import checkpoint_folder, load_frozen, start_weights
from fusionlib.training.data import load_pictures, reference_pairs
from fusionlib.training.export import save_model
from fusionlib.training.latents import cached_latents, embed_captions
from fusionlib.training.loop import Run, fit
from fusionlib.training.objective import diffusion_loss, face_weights, noised


class _Conditioned(nn.Module):
    """The frozen UNet with the adapter's faces; only the adapter is trained."""

    def __init__(self, unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
        super().__init__()
        self.unet, self.adapter = unet, adapter
        adapter.attach(unet)

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        hidden_states: dict[str, Tensor],
        strength: Tensor,
    ) -> Tensor:
        faces = self.adapter.project(hidden_states)
        with self.adapter.conditioned([faces], strengths=[strength]):
            return self.unet(noisy, timesteps, text, return_dict=False)[0]


def train(
    profile: Profile,
    out: Path | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = True,
    start_from: Path | None = None,
) -> Run:
    """Train the adapter on pairs of pictures of one person and write its folder.

    The reference is a photograph, the target any other picture of the same person. The text, the
    reference, or both are dropped with the profile's probabilities (5% each), for guidance.

    Args:
        profile: base model, recipe and shards.
        out: the adapter's folder; default ``profile.adapter``.
        minutes: stop after this time with a checkpoint.
        steps: overrides the recipe's length.
        resume: go on from the checkpoint if there is one.
        start_from: the folder of an adapter to begin with, rather than with the self-attention.
    """
    recipe = profile.recipe("adapter")
    settings = profile.training
    base = checkpoint_folder(profile.base_model)
    target = Path(out or profile.adapter)
    folder = Path(settings.runs) / profile.name / "adapter"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = load_pictures(settings.shards, profile.resolution)
    captions = embed_captions(base, pictures, device)
    mirrored = pictures.mirrored()
    latents = cached_latents(base, mirrored, folder.parent / "latents.safetensors", device)
    weights = face_weights(torch.from_numpy(mirrored.masks), (latents.shape[2], latents.shape[3]))
    unet = load_frozen(UNet2DConditionModel, base / "unet").to(device)
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    partners = reference_pairs(pictures)
    usable = torch.tensor([i for i, others in enumerate(partners) if len(others)])
    empty_prompt = captions.embeddings[:1]
    hidden = _reference_states(unet, latents, empty_prompt) if settings.cache_references else None
    adapter = FusionAdapter.from_unet(unet, init="self_attention")
    start = start_weights(adapter, start_from, "adapter")

    def loss(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        size = recipe.batch_size
        index = usable[torch.randint(len(usable), (size,), generator=generator)]
        draws = torch.rand(size, generator=generator).tolist()
        reference = [
            int(partners[i][int(u * len(partners[i]))])
            for i, u in zip(index.tolist(), draws, strict=True)
        ]
        # Either picture may be mirrored: the second half of the latents.
        offset = len(pictures) * torch.randint(2, (2, size), generator=generator)
        chosen, shown = index + offset[0], torch.tensor(reference) + offset[1]
        drop = torch.rand(size, generator=generator)
        no_text, no_reference = dropout_masks(
            drop, settings.text_dropout, settings.reference_dropout, settings.both_dropout
        )
        noisy, timesteps, goal = noised(scheduler, latents[chosen], generator)
        text = captions.draw(index, no_text, generator)
        if hidden is None:
            states = encode_references(unet, latents[shown].to(device), empty_prompt.to(device))
        else:
            states = {name: values[shown].to(device) for name, values in hidden.items()}
        prediction = network(
            noisy.to(device),
            timesteps.to(device),
            text.to(device),
            states,
            (~no_reference).float().to(device),
        )
        return diffusion_loss(prediction, goal.to(device), weights[chosen].to(device))

    run = fit(
        _Conditioned(unet, adapter),
        loss,
        recipe,
        folder,
        seed=profile.seed,
        steps=steps,
        minutes=minutes,
        resume=resume,
        name="adapter",
        start=start,
    )
    adapter.detach(unet)
    save_model(adapter, target, folder)
    return run


def dropout_masks(
    draw: Tensor, text: float, reference: float, both: float
) -> tuple[Tensor, Tensor]:
    """Which samples lose the text and which the reference; the three cases exclude each other.

    Args:
        draw: uniform in [0, 1), ``(batch,)``.
        text: probability that only the text is dropped.
        reference: probability that only the reference is dropped.
        both: probability that both are.

    Returns:
        Boolean ``(batch,)``: no text, no reference.
    """
    only_text = draw < text
    only_reference = (draw >= text) & (draw < text + reference)
    neither = (draw >= text + reference) & (draw < text + reference + both)
    return only_text | neither, only_reference | neither


def _reference_states(
    unet: UNet2DConditionModel, latents: Tensor, empty_prompt: Tensor
) -> dict[str, Tensor]:
    """h_f of every picture at every layer, bfloat16 in host memory (0.1 MB a picture)."""
    parts: list[dict[str, Tensor]] = []
    with torch.autocast(unet.device.type, torch.bfloat16):
        for chunk in tqdm(latents.split(64), desc="reference pass", mininterval=2.0):
            states = encode_references(unet, chunk.to(unet.device), empty_prompt.to(unet.device))
            parts.append({name: value.bfloat16().cpu() for name, value in states.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
