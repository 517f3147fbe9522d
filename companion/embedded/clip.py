"""The text side: a tokenizer and a small CLIPModel, trained on pictures and their captions.

The text tower conditions the UNet; both towers together give the CLIP score of the embedded
profile. Conditioning is learned sooner than scoring, so the text tower is finished first, and then
the image tower is trained alone.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTokenizer,
)

from companion.embedded.losses import contrastive_loss, word_loss
from fusionlib.profiles import Profile
from fusionlib.support.files import Made, replacing
from fusionlib.training.checkpoints import start_weights
from fusionlib.training.encoders import tokenize
from fusionlib.training.export import model_files, own_folder, save_model
from fusionlib.training.loop import Batch, Run
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import DEFAULTS, RunOptions, check_runs, run_folder, train_network

VIEWS = 4
"""Pictures of each person in a batch. Only expression, style and scene distinguish them, which
would hardly matter among pictures of strangers."""

STAGES = ("clip", "clip_images")
"""The recipes, in order."""

TOKENS = r"(vocab|tokenizer|tokenizer_config|special_tokens_map)\.json|merges\.txt"
"""Names of a tokenizer's files."""

FOLDERS = {
    "clip": model_files('"model_type": "clip"', r"(pre)?processor_config\.json", TOKENS),
    "text_encoder": model_files('"model_type": "clip_text_model"'),
    "tokenizer": Made(TOKENS, {"tokenizer_config.json": "CLIPTokenizer"}),
}
"""What each of the three folders holds."""

START, END = "<|startoftext|>", "<|endoftext|>"

# CLIP's split of text before byte-pair encoding (Radford 2021): contractions, words, digits, rest.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(captions: Iterable[str], vocab_size: int, folder: Path) -> CLIPTokenizer:
    """Learn byte-pair encodings from captions and write them in CLIPTokenizer's format.

    Every byte is in the vocabulary, so that any prompt can be encoded.

    Args:
        captions: Text to learn from.
        vocab_size: Number of tokens, at least 514 (each byte inside and at the end of a word, and
            the two special tokens).
        folder: Folder for ``vocab.json`` and ``merges.txt``.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*letters, *(letter + "</w>" for letter in letters), START, END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def build(profile: Profile, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The profile's CLIPModel with random weights and the tokenizer's special tokens."""
    size = profile.architecture
    text = dict(size["text"]) | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    width = size["clip"]["projection_dim"]
    text["projection_dim"] = width
    vision = dict(size["vision"]) | {"projection_dim": width}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


class _Embed(nn.Module):
    """Both towers in one forward pass, and the text tower's states."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        out = self.clip(input_ids=input_ids, pixel_values=pixel_values)
        states = out.text_model_output.last_hidden_state
        return out.image_embeds, out.text_embeds, self.clip.logit_scale, states


def train(profile: Profile, options: RunOptions = DEFAULTS) -> Run:
    """Train tokenizer and CLIPModel; write ``tokenizer/``, ``text_encoder/`` and ``clip/``.

    Two recipes run one after the other: ``clip`` trains both towers, after which
    ``text_encoder/`` is final; ``clip_images``, if there is one, trains the image tower alone.

    Args:
        profile: Architecture, recipes and shards.
        options: Options of the run. Its folder is by default ``profile.base_model``. It may start
            from a checkpoint folder's ``clip/`` and ``tokenizer/``.
    """
    profile.recipe("clip")  # or there is nothing to train
    target, start_from = Path(options.out or profile.base_model), options.start_from
    for name, made in FOLDERS.items():
        own_folder(target / name, made, "clip")
    check_runs(profile, *STAGES)
    pictures = load_pictures(profile.training.shards, profile.resolution)
    if start_from:
        tokenizer = CLIPTokenizer.from_pretrained(start_from / "tokenizer")
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = train_tokenizer(
                (text for wordings in pictures.captions for text in wordings),
                profile.architecture["clip"]["vocab_size"],
                Path(folder),
            )
    tokenizer.model_max_length = profile.architecture["text"]["max_position_embeddings"]
    side = {"height": profile.resolution, "width": profile.resolution}
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": profile.resolution}, crop_size=side
        ),
        tokenizer=tokenizer,
    )
    mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_processor.image_std)[:, None, None]

    torch.manual_seed(profile.seed)
    clip = build(profile, tokenizer)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(1 / 0.07))
    start = start_weights(clip, start_from and start_from / "clip", "clip")
    people = [
        torch.from_numpy(np.flatnonzero(pictures.person == person))
        for person in np.unique(pictures.person)
    ]
    token_ids = [tokenize(tokenizer, wordings) for wordings in pictures.captions]

    def loss(network: nn.Module, batch: Batch, size: int, text_learns: bool) -> dict[str, Tensor]:
        generator = batch.generator
        chosen = torch.randperm(len(people), generator=generator)[: size // VIEWS]
        index = torch.cat(
            [people[i][torch.randperm(len(people[i]), generator=generator)[:VIEWS]] for i in chosen]
        )
        draw = torch.rand(len(index), generator=generator)
        ids = torch.stack(
            [
                token_ids[i][int(u * len(token_ids[i]))]
                for i, u in zip(index.tolist(), draw.tolist(), strict=True)
            ]
        )
        pixels = pictures.batch(index, clip.device)
        flip = torch.rand(len(index), generator=generator) < 0.5
        pixels[flip] = pixels[flip].flip(-1)
        values = ((pixels + 1) / 2 - mean.to(clip.device)) / std.to(clip.device)
        ids = ids.to(clip.device)
        image, text, scale, states = network(values, ids)
        contrast = contrastive_loss(image, text, scale)
        hits = (image @ text.T).argmax(1).cpu() == torch.arange(len(index))
        terms = {"loss": contrast, "contrast": contrast, "top1": hits.float().mean()}
        if text_learns:
            embeddings = clip.text_model.embeddings.token_embedding.weight
            words = word_loss(states, embeddings, ids, tokenizer.eos_token_id)
            terms |= {"loss": contrast + words, "words": words}
        return terms

    network = _Embed(clip)
    for name in STAGES:
        recipe = getattr(profile.training, name)
        if recipe is None:
            continue
        text_learns = name == "clip"
        clip.text_model.requires_grad_(text_learns)
        clip.text_projection.requires_grad_(text_learns)
        part_loss = partial(loss, size=recipe.batch_size, text_learns=text_learns)
        run = train_network(network, part_loss, profile, name, options, start=start)
        if text_learns or run.finished:
            made, record = FOLDERS["clip"], run_folder(profile, name)
            save_model(clip, target / "clip", made, record, processor=processor)
        if text_learns:
            text_encoder = CLIPTextModel(clip.config.text_config)
            text_encoder.load_state_dict(clip.text_model.state_dict())
            save_model(text_encoder, target / "text_encoder", FOLDERS["text_encoder"])
            with replacing(target / "tokenizer", FOLDERS["tokenizer"]) as new:
                tokenizer.save_pretrained(new)
                tokenizer.backend_tokenizer.model.save(str(new))
        if not run.finished:
            break  # the next recipe starts from what this one ends with
    return run
