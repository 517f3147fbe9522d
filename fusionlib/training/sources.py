"""Where the adapter's batches come from: memory, the shards as they are read, or a cache on disk.

All three return the same for the same sample number (`Inputs`). They differ in what is computed
once, and what in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm

from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.reference import encode_references
from fusionlib.training.cached import CachedCrops, cached_latents
from fusionlib.training.checkpoints import FrozenBase
from fusionlib.training.crops import Crops
from fusionlib.training.encoders import Encoders, embed_captions, face_weights
from fusionlib.training.loop import Batch
from fusionlib.training.pairs import Pairing, PairStream, Skipped
from fusionlib.training.pictures import Pictures
from fusionlib.training.shards import SampleSet


@dataclass(frozen=True)
class Inputs:
    """A batch as the frozen models see it.

    Attributes:
        latents: Scaled latents of the targets, ``(batch, channels, h, w)``, float32.
        weights: Weights of their positions in the loss, ``(batch, 1, h, w)``.
        text: Embeddings of the captions, ``(batch, tokens, width)``.
        reference: Scaled latents of the references, shaped like ``latents``; or their hidden states
            h_f by layer, where these were computed once.
        reference_text: Embeddings of the references' own captions, where they are asked for.
        rows: Rows of the targets and the references in a set in memory, ``(2, batch)``. The second
            half of the rows are the mirror images.
    """

    latents: Tensor
    weights: Tensor
    text: Tensor
    reference: Tensor | dict[str, Tensor]
    reference_text: Tensor | None = None
    rows: Tensor | None = None


Source = Callable[[Batch], Inputs]


def first_people(people: Sequence[Hashable], share: float) -> list[int]:
    """The pictures of the first people of a set.

    Args:
        people: Person in each picture. Each None is a person of its own.
        share: Share of the people, above 0; at least one person remains.
    """
    each = [("alone", n) if who is None else ("known", who) for n, who in enumerate(people)]
    order = list(dict.fromkeys(each))
    selected = set(order[: max(1, round(share * len(order)))])
    return [n for n, who in enumerate(each) if who in selected]


def stream_source(
    samples: SampleSet, pairing: Pairing, crops: Crops, encoders: Encoders, skipped: Skipped,
    workers: int, captioned: bool = False,
) -> Source:  # fmt: skip
    """Read, cut and encode every picture in every step: most variety, at the encoders' cost."""
    stream = PairStream(samples, pairing, crops, skipped, workers)

    def draw(batch: Batch) -> Inputs:
        pairs = stream(batch)
        both = encoders.encode(torch.cat([pairs.targets, pairs.references]))
        latents, reference = both.chunk(2)
        weights = encoders.weights(pairs.masks, latents)
        reference_text = encoders.embed(pairs.reference_captions) if captioned else None
        return Inputs(latents, weights, encoders.embed(pairs.captions), reference, reference_text)

    return draw


def memory_source(
    profile: Profile, base: FrozenBase, pictures: Pictures, latents_folder: Path,
    cache_references: bool = False, captioned: bool = False,
) -> tuple[Tensor, Source]:  # fmt: skip
    """Hold latents and text of the whole set in memory, and if asked to, the references' h_f.

    Args:
        profile: Seed of the run, and the share of people to show.
        base: Frozen base model.
        pictures: Training set.
        latents_folder: Folder that keeps the latents from run to run.
        cache_references: Whether to compute h_f of every picture once.
        captioned: Whether references are encoded under their own captions: a drawn wording, or
            the first one where h_f is computed once.

    Returns:
        The empty prompt's embedding ``(1, tokens, width)`` in the compute dtype, and the source.
    """
    device = base.device
    captions = embed_captions(base.folder, pictures, device)
    mirrored = pictures.mirrored()
    with PartialState().main_process_first():  # the others find the file
        latents = cached_latents(base.folder, mirrored, latents_folder, device)
    size = (latents.shape[2], latents.shape[3])
    weights = face_weights(torch.from_numpy(mirrored.masks), size)
    empty_prompt = captions.embeddings[:1]
    hidden: dict[str, Tensor] | None = None
    if cache_references:
        text = empty_prompt
        if captioned:
            text = captions.embeddings[[wordings[0] for wordings in captions.rows] * 2]
        hidden = _reference_states(base.unet, latents, text)
    photos = [style == "photo" for style in pictures.style]
    people = pictures.person.tolist()
    single = [n for n, who in enumerate(people) if who >= 0]  # not the pictures of groups
    first = first_people([people[n] for n in single], profile.training.people_share)
    selected = {single[n] for n in first}
    people = [who if n in selected else None for n, who in enumerate(people)]
    pairing = Pairing(people, photos, profile.seed, alone=False)  # None has no partners

    def draw(batch: Batch) -> Inputs:
        chosen = []
        for number in batch.samples:
            target, reference, rng = pairing.choose(number)
            # Either picture may be mirrored: the second half of the latents.
            mirror = len(pictures) * rng.integers(2, size=2)
            wordings = captions.rows[target]
            row = wordings[int(rng.integers(len(wordings)))]
            others = captions.rows[reference]
            own = others[int(rng.integers(len(others)))]
            chosen.append((target + mirror[0], reference + mirror[1], row, own))
        targets, references, rows, own_rows = torch.tensor(np.array(chosen)).T
        shown: Tensor | dict[str, Tensor] = (
            latents[references].to(device)
            if hidden is None
            else {name: values[references].to(device) for name, values in hidden.items()}
        )
        return Inputs(
            latents[targets].to(device),
            weights[targets].to(device),
            captions.embeddings[rows].to(device),
            shown,
            captions.embeddings[own_rows].to(device) if captioned else None,
            torch.stack([targets, references]),
        )

    return empty_prompt.to(device, base.dtype), draw


def _reference_states(
    unet: UNet2DConditionModel, latents: Tensor, text: Tensor
) -> dict[str, Tensor]:
    """h_f of every picture at every layer, bfloat16 in host memory (70 kB for an embedded one).

    The text is one embedding for all pictures, or one for each.
    """
    parts: list[dict[str, Tensor]] = []
    kind = {"device": unet.device, "dtype": unet.dtype}
    texts = text.expand(len(latents), -1, -1).split(64)
    chunks = zip(latents.split(64), texts, strict=True)
    for chunk, embeddings in tqdm(chunks, total=len(texts), desc="reference pass", mininterval=2.0):
        states = encode_references(unet, chunk.to(**kind), embeddings.to(**kind))
        parts.append({name: value.bfloat16().cpu() for name, value in states.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def cached_source(
    samples: SampleSet, pairing: Pairing, crops: Crops, encoders: Encoders, skipped: Skipped,
    folder: Path, variants: int, seed: int, captioned: bool = False,
) -> Source:  # fmt: skip
    """Encode some random crops of every picture once, keep them on disk, and draw from them."""
    cache = CachedCrops(folder, samples.samples, variants, crops, encoders, seed)
    skipped.add(cache.broken)
    broken = cache.broken.keys()
    if len(broken) == len(samples.samples):
        raise FusionError(f"none of the {len(broken)} pictures of the training set can be read")

    def draw(batch: Batch) -> Inputs:
        columns: list[list[Tensor]] = [[], [], [], []]
        own: list[Tensor] = []
        for number in batch.samples:
            attempt = 0
            target, reference, rng = pairing.choose(number)
            while {samples.samples[target].place, samples.samples[reference].place} & broken:
                attempt += 1
                target, reference, rng = pairing.choose(number, attempt)
            first, second = rng.integers(variants, size=2)
            wording = int(rng.integers(len(samples.samples[target].captions)))
            columns[0].append(cache.row("targets", target, int(first)))
            columns[1].append(cache.row("masks", target, int(first)))
            columns[2].append(cache.text(target, wording))
            columns[3].append(cache.row("references", reference, int(second)))
            if captioned:
                other = int(rng.integers(len(samples.samples[reference].captions)))
                own.append(cache.text(reference, other))
        latents, masks, text, shown = (torch.stack(c).to(encoders.device) for c in columns)
        reference_text = torch.stack(own).to(encoders.device) if captioned else None
        weights = encoders.weights(masks, latents)
        return Inputs(latents.float(), weights, text, shown.float(), reference_text)

    return draw
