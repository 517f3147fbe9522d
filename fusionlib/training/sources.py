"""Where the adapter's batches come from: memory, the shards as they are read, or a disk cache.

All three give the same thing for the same sample number (`Inputs`); what differs is what is
computed once and what in every step.
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
from fusionlib.reference import encode_references
from fusionlib.training.cached import LatentStore, cached_latents, embed_captions
from fusionlib.training.crops import Crops
from fusionlib.training.encoders import Encoders, face_weights
from fusionlib.training.loop import Batch
from fusionlib.training.pairs import Pairing, PairStream, Skipped
from fusionlib.training.pictures import Pictures
from fusionlib.training.shards import SampleSet


@dataclass(frozen=True)
class Inputs:
    """A batch as the frozen models see it.

    Attributes:
        latents: scaled latents of the targets, ``(batch, channels, h, w)``, float32.
        weights: of each of their positions in the loss, ``(batch, 1, h, w)``.
        text: embeddings of the captions, ``(batch, tokens, width)``.
        reference: scaled latents of the references, shaped like ``latents``; or, where they were
            computed once, their h_f by layer.
        reference_text: embeddings of the references' own captions, where they are asked for.
        rows: which pictures of a set in memory these are, ``(2, batch)``: targets and references.
            The second half of the rows are the mirror images.
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
        people: who each picture shows; None is somebody else each time.
        share: of the people, above 0; at least one stays.
    """
    each = [("alone", n) if who is None else ("known", who) for n, who in enumerate(people)]
    order = list(dict.fromkeys(each))
    kept = set(order[: max(1, round(share * len(order)))])
    return [n for n, who in enumerate(each) if who in kept]


def stream_source(
    samples: SampleSet, pairing: Pairing, crops: Crops, encoders: Encoders, skipped: Skipped,
    workers: int, captioned: bool = False,
) -> Source:  # fmt: skip
    """Read, cut and encode every picture anew: endless variety, at the price of the encoders."""
    stream = PairStream(samples, pairing, crops, skipped, workers)

    def draw(batch: Batch) -> Inputs:
        pairs = stream(batch)
        both = encoders.encode(torch.cat([pairs.targets, pairs.references]))
        latents, reference = both.chunk(2)
        weights = encoders.weights(pairs.masks, latents)
        said = encoders.embed(pairs.reference_captions) if captioned else None
        return Inputs(latents, weights, encoders.embed(pairs.captions), reference, said)

    return draw


def memory_source(
    pictures: Pictures, seed: int, base: Path, latents_folder: Path, device: torch.device,
    unet: UNet2DConditionModel | None = None, captioned: bool = False, people_share: float = 1.0,
) -> tuple[Tensor, Source]:  # fmt: skip
    """Hold latents and text of the whole set in memory, and h_f too, if there is a UNet for it.

    Args:
        pictures: the set.
        seed: of the run.
        base: the checkpoint's folder.
        latents_folder: keeps the latents from run to run.
        device: where the batches go.
        unet: the frozen UNet, to compute h_f once; None leaves that to every step.
        captioned: whether references are shown under their own captions: the first wording where
            h_f is computed once.
        people_share: of the people that targets and references show.

    Returns:
        The empty prompt's embedding ``(1, tokens, width)``, and the source.
    """
    captions = embed_captions(base, pictures, device)
    mirrored = pictures.mirrored()
    with PartialState().main_process_first():  # the others find the file
        latents = cached_latents(base, mirrored, latents_folder, device)
    size = (latents.shape[2], latents.shape[3])
    weights = face_weights(torch.from_numpy(mirrored.masks), size)
    empty_prompt = captions.embeddings[:1]
    said = empty_prompt
    if captioned:
        said = captions.embeddings[[wordings[0] for wordings in captions.rows] * 2]
    hidden = _reference_states(unet, latents, said) if unet is not None else None
    photos = [style == "photo" for style in pictures.style]
    people = pictures.person.tolist()
    alone = [n for n, who in enumerate(people) if who >= 0]  # groups are nobody's pictures
    kept = {alone[n] for n in first_people([people[n] for n in alone], people_share)}
    people = [who if n in kept else None for n, who in enumerate(people)]  # who has no partners
    pairing = Pairing(people, photos, seed, alone=False)

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

    return empty_prompt, draw


def _reference_states(
    unet: UNet2DConditionModel, latents: Tensor, text: Tensor
) -> dict[str, Tensor]:
    """h_f of every picture at every layer, bfloat16 in host memory (70 kB for an embedded one).

    The text is one for all, or one for each.
    """
    parts: list[dict[str, Tensor]] = []
    kind = {"device": unet.device, "dtype": unet.dtype}
    texts = text.expand(len(latents), -1, -1).split(64)
    chunks = zip(latents.split(64), texts, strict=True)
    for chunk, said in tqdm(chunks, total=len(texts), desc="reference pass", mininterval=2.0):
        states = encode_references(unet, chunk.to(**kind), said.to(**kind))
        parts.append({name: value.bfloat16().cpu() for name, value in states.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def cached_source(
    samples: SampleSet, pairing: Pairing, crops: Crops, encoders: Encoders, skipped: Skipped,
    cache: Path, variants: int, seed: int, captioned: bool = False,
) -> Source:  # fmt: skip
    """Encode some random crops of every picture once, keep them on disk, and draw from them."""
    store = LatentStore(cache, samples.samples, variants)
    store.fill(crops, encoders, seed)
    skipped.add(store.broken)
    broken = store.broken.keys()
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
            columns[0].append(store.row("targets", target, int(first)))
            columns[1].append(store.row("masks", target, int(first)))
            columns[2].append(store.text(target, wording))
            columns[3].append(store.row("references", reference, int(second)))
            if captioned:
                other = int(rng.integers(len(samples.samples[reference].captions)))
                own.append(store.text(reference, other))
        latents, masks, text, shown = (torch.stack(c).to(encoders.device) for c in columns)
        said = torch.stack(own).to(encoders.device) if captioned else None
        return Inputs(latents.float(), encoders.weights(masks, latents), text, shown.float(), said)

    return draw
