"""Counterparts of the compared systems, trained alike: over one frozen base, on the same people.

A system is defined here by two things: the views of the reference that it is shown, and the modules
that it adds to the UNet and trains. The loop, the samples, the noise, the dropouts and the length
are those of the adapter (`fusionlib.training.adapter`), so that only the design differs. The
ablations of fused attention use that trainer itself, with one entry of the profile changed.

The recogniser whose vectors some of them read is dlib's, and never the judge that the profile
trains (`companion.embedded.recogniser`), which has to be independent of all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterPlusImageProjection,
    MultiIPAdapterImageProjection,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from companion.embedded.controlnet import keep_size
from companion.evaluation.training_monitor import make_monitor
from companion.faces.arcface import DlibEmbedder
from companion.methods.arc2face import Sentence
from companion.methods.counterparts import ABLATIONS, COUNTERPARTS, FILE, SENTENCE, WORD
from companion.methods.published_layout import save_ip_adapter
from companion.methods.reference_views import Views, load_views
from fusionlib.adapter import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.support.files import replacing
from fusionlib.training import adapter as fused
from fusionlib.training.checkpoints import FrozenBase, checkpoint_folder, load_frozen
from fusionlib.training.denoising import DenoisingTask, Drawn
from fusionlib.training.export import (
    ADAPTER,
    WEIGHTS,
    copy_record,
    half,
    half_module,
    model_files,
    own_folder,
)
from fusionlib.training.loop import Run
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import DEFAULTS, RunOptions, check_runs, run_folder, train_network
from fusionlib.training.sources import Inputs, memory_source
from fusionlib.unet_layers import cross_attention_layers

MADE = model_files(
    '"trained_parameters"', re.escape(FILE), rf"(ControlNetModel|encoder)/(config\.json|{WEIGHTS})"
)
"""What a counterpart's folder holds."""

RESAMPLER = 64
"""Width of the resamplers of IP-Adapter Plus and InstantID, which have one attention head."""

HINTS = (8, 16, 32, 32)
"""Channels of the layers that read InstantID's drawing, each of which halves its sides."""


class Counterpart(nn.Module):
    """The frozen UNet with a system's own modules; parameters that require a gradient are trained.

    Args:
        unet: Frozen UNet, changed in place.

    Attributes:
        views: Views of the reference that `forward` takes, named as in
            `companion.methods.reference_views.NAMES`.
    """

    views: tuple[str, ...] = ()

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, seen: dict[str, Tensor]
    ) -> Tensor:
        """The UNet's prediction, shaped like ``noisy``; ``seen`` holds the views by name."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the trained weights in float16, in the layout of the published checkpoint."""
        raise NotImplementedError


class DecoupledTokens(Counterpart):
    """IP-Adapter and its variants: a few tokens of the reference, with an attention of their own.

    The layers are diffusers'. As in IP-Adapter's own training, the new keys and values begin as
    copies of the text's.

    Args:
        unet: Frozen UNet, changed in place.
        projection: One of diffusers' projections from a view to tokens.
        tokens: Number of tokens.
        views: View that is projected, and for Plus the one that its tokens read.
    """

    def __init__(
        self, unet: UNet2DConditionModel, projection: nn.Module, tokens: int, *views: str
    ) -> None:
        super().__init__(unet)
        self.views = views
        width = unet.config.cross_attention_dim
        processors = dict(unet.attn_processors)
        for name, layer in cross_attention_layers(unet).items():
            added = IPAdapterAttnProcessor2_0(layer.inner_dim, width, num_tokens=[tokens])
            for part in ("k", "v"):
                (linear,) = getattr(added, f"to_{part}_ip")
                linear.load_state_dict(getattr(layer, f"to_{part}").state_dict())
            processors[f"{name}.processor"] = added.requires_grad_(True).to(unet.device).float()
        unet.set_attn_processor(processors)
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        unet.encoder_hid_proj.to(unet.device).float()
        unet.config.encoder_hid_dim_type = "ip_image_proj"

    @property
    def projection(self) -> Any:
        """The projection from a view to tokens."""
        return self.unet.encoder_hid_proj.image_projection_layers[0]

    def forward(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, seen: dict[str, Tensor]
    ) -> Tensor:
        """See `Counterpart`."""
        embeds = seen[self.views[0]][:, None]  # one reference each
        if hasattr(self.projection, "clip_embeds"):
            self.projection.clip_embeds = seen[self.views[1]][:, None]
        return self.unet(
            noisy,
            timesteps,
            text,
            added_cond_kwargs={"image_embeds": [embeds]},
            return_dict=False,
            **self._control(noisy, timesteps, embeds, seen),
        )[0]

    def _control(
        self, noisy: Tensor, timesteps: Tensor, embeds: Tensor, seen: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Further arguments of the UNet."""
        return {}

    def save(self, folder: Path) -> None:
        """Write ``ip-adapter.safetensors``."""
        save_ip_adapter(self.unet, folder / FILE)


class IdentityNet(DecoupledTokens):
    """InstantID: the same, and a ControlNet that sees landmarks, and the tokens in place of a text.

    A whole ControlNet would have more weights than any other counterpart. This one is a frozen copy
    of the UNet's encoder, of which only the first layers, which read the drawing, and the last
    ones, which pass the result on, are trained.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        projection: nn.Module,
        tokens: int,
        *views: str,
        factor: int,
    ) -> None:
        halvings = factor.bit_length() - 1
        hints = (*HINTS[:halvings], *HINTS[-1:] * (halvings - len(HINTS)), HINTS[-1])
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=hints)
        keep_size(controlnet.controlnet_cond_embedding)
        super().__init__(unet, projection, tokens, *views)
        nn.Module.to(controlnet.requires_grad_(False), unet.device, unet.dtype)  # quietly
        self.controlnet = controlnet
        for part in (
            controlnet.controlnet_cond_embedding,
            controlnet.controlnet_down_blocks,
            controlnet.controlnet_mid_block,
        ):
            part.requires_grad_(True).float()

    def _control(
        self, noisy: Tensor, timesteps: Tensor, embeds: Tensor, seen: dict[str, Tensor]
    ) -> dict[str, Any]:
        tokens = self.unet.encoder_hid_proj([embeds])[0].flatten(1, 2)
        down, middle = self.controlnet(
            noisy, timesteps, tokens, controlnet_cond=seen["drawing"], return_dict=False
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def save(self, folder: Path) -> None:
        """Write ``ip-adapter.safetensors``, and ``ControlNetModel/`` with its trained layers."""
        super().save(folder)
        self.controlnet.save_config(folder / "ControlNetModel")
        trained = {
            name: half(parameter)
            for name, parameter in self.controlnet.named_parameters()
            if parameter.requires_grad
        }
        save_file(trained, folder / "ControlNetModel" / "diffusion_pytorch_model.safetensors")


class FaceSentence(Counterpart):
    """Arc2Face: the recogniser's vector in place of a word, and a text encoder trained to read it.

    The published system retrains the whole UNet as well; here it stays the common, frozen one. The
    pictures' captions are not used.
    """

    views = ("vector",)

    def __init__(self, unet: UNet2DConditionModel, encoder: Any, tokenizer: Any) -> None:
        super().__init__(unet)
        self.encoder = encoder.to(unet.device).float()
        self.encoder.requires_grad_(True)
        self.encoder.get_input_embeddings().requires_grad_(False)
        self._sentence = Sentence(tokenizer, SENTENCE, WORD)
        self._empty = Sentence(tokenizer, "", WORD)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, seen: dict[str, Tensor]
    ) -> Tensor:
        """See `Counterpart`."""
        vectors = seen["vector"]
        absent = ~vectors.any(dim=1)[:, None, None]  # the unconditional branch: an empty prompt
        sentence = self._sentence.encode(self.encoder, vectors)
        empty = self._empty.encode(self.encoder, vectors)
        states = torch.where(absent, empty, sentence)
        return self.unet(noisy, timesteps, states.to(noisy), return_dict=False)[0]

    def save(self, folder: Path) -> None:
        """Write ``encoder/``."""
        half_module(self.encoder).save_pretrained(folder / "encoder")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the frozen models that a counterpart has to fit.

    Attributes:
        embedding: Width of CLIP's image embedding.
        patches: Width of CLIP's hidden states.
        text: Width of the UNet's text embeddings.
        factor: Pixels per position of the latents, in each direction.
    """

    embedding: int
    patches: int
    text: int
    factor: int


def _ip_adapter(unet: Any, sizes: Sizes, base: Path) -> Counterpart:
    projection = ImageProjection(sizes.embedding, sizes.text, num_image_text_embeds=4)
    return DecoupledTokens(unet, projection, 4, "embedding")


def _ip_adapter_plus(unet: Any, sizes: Sizes, base: Path) -> Counterpart:
    return DecoupledTokens(unet, _resampler(sizes.patches, sizes.text), 16, "patches")


def _faceid(unet: Any, sizes: Sizes, base: Path, tokens: int = 4) -> Counterpart:
    projection = IPAdapterFaceIDImageProjection(
        DlibEmbedder.width, sizes.text, mult=2, num_tokens=tokens
    )
    return DecoupledTokens(unet, projection, tokens, "vector")


def _faceid_plus(unet: Any, sizes: Sizes, base: Path) -> Counterpart:
    projection = IPAdapterFaceIDPlusImageProjection(
        embed_dims=sizes.text,
        output_dims=sizes.text,
        hidden_dims=sizes.patches,
        id_embeddings_dim=DlibEmbedder.width,
        heads=1,
    )
    projection.shortcut = True  # version 2
    # The layout fixes the width and depth of the resampler. Its feed-forward parts, most of its
    # weights, stay at zero, or it would be several times as large as the others.
    for block in projection.layers:
        for parameter in block.ff.parameters():
            parameter.requires_grad_(False)
        nn.init.zeros_(block.ff[1].net[2].weight)
    return DecoupledTokens(unet, projection, 4, "vector", "face_patches")


def _instantid(unet: Any, sizes: Sizes, base: Path) -> Counterpart:
    projection = _OfOneVector(**_resampler_sizes(DlibEmbedder.width, sizes.text))
    return IdentityNet(unet, projection, 16, "vector", "drawing", factor=sizes.factor)


def _arc2face(unet: Any, sizes: Sizes, base: Path) -> Counterpart:
    encoder = load_frozen(CLIPTextModel, base / "text_encoder")
    return FaceSentence(unet, encoder, CLIPTokenizer.from_pretrained(base / "tokenizer"))


def _resampler_sizes(given: int, width: int) -> dict[str, int]:
    sizes = {"embed_dims": given, "output_dims": width, "hidden_dims": RESAMPLER}
    return sizes | {"heads": 1, "num_queries": 16}


def _resampler(given: int, width: int) -> nn.Module:
    return IPAdapterPlusImageProjection(**_resampler_sizes(given, width))


class _OfOneVector(IPAdapterPlusImageProjection):
    """A resampler over a sequence of one vector; diffusers loads it like any other."""

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = super().forward(x if x.ndim == 3 else x[:, None])
        return tokens


BUILDERS: dict[str, Callable[[Any, Sizes, Path], Counterpart]] = {
    "ip-adapter": _ip_adapter,
    "ip-adapter-plus": _ip_adapter_plus,
    "faceid": _faceid,
    "faceid-plus": _faceid_plus,
    "faceid-portrait": partial(_faceid, tokens=16),
    "instantid": _instantid,
    "arc2face": _arc2face,
}
"""How each counterpart is made: ``builder(unet, sizes, checkpoint folder)``."""

NAMES = (*ABLATIONS, *BUILDERS)
"""The methods that `train_method` trains. DreamBooth is not among them: it learns each person when
a study asks for pictures of that person."""


@dataclass
class Task(DenoisingTask):
    """Everything that a counterpart's run needs.

    Attributes:
        network: Counterpart that is trained.
        views: Views of the training set.
    """

    network: Counterpart
    views: Views

    def predict(self, network: nn.Module, inputs: Inputs, drawn: Drawn) -> Tensor:
        """See `DenoisingTask`."""
        assert inputs.rows is not None
        targets, references = inputs.rows
        seen = self.views.of(targets, references, drawn.no_reference)
        prediction: Tensor = network(drawn.noisy, drawn.timesteps, drawn.text, seen)
        return prediction


def build_network(profile: Profile, name: str, unet: Any = None) -> Counterpart:
    """A counterpart with its first weights, the same for the same seed.

    Args:
        profile: Base model and CLIP.
        name: Name in `BUILDERS`.
        unet: Frozen UNet of the base model; by default it is loaded.

    Raises:
        FusionError: A model is missing.
    """
    base = checkpoint_folder(profile.base_model)
    unet = load_frozen(UNet2DConditionModel, base / "unet") if unet is None else unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(profile.seed)
        return BUILDERS[name](unet, _sizes(profile, base, unet), base)


def _sizes(profile: Profile, base: Path, unet: Any) -> Sizes:
    clip = json.loads((checkpoint_folder(profile.clip_model) / "config.json").read_text("utf-8"))
    return Sizes(
        embedding=clip["projection_dim"],
        patches=clip["vision_config"]["hidden_size"],
        text=unet.config.cross_attention_dim,
        factor=profile.resolution // unet.config.sample_size,
    )


def prepare(profile: Profile, name: str) -> Task:
    """Load the frozen models and the training set of a profile, and make a counterpart.

    Raises:
        FusionError: A model or a shard is missing, or the set is not held in memory.
    """
    settings = profile.training
    if settings.stream:
        raise FusionError(
            f"{name} is trained on a set that fits in memory: set training.stream: false in the "
            f"profile {profile.name!r}."
        )
    base = FrozenBase.load(profile)
    pictures = load_pictures(settings.shards, profile.resolution)
    latents = run_folder(profile, "latents")
    empty_prompt, source = memory_source(profile, base, pictures, latents)
    network = build_network(profile, name, base.unet).to(base.device)
    with PartialState().main_process_first():  # the others find the files
        folder = run_folder(profile, "views")
        views = load_views(profile, pictures, network.views, folder, base.device)
    return Task(
        network=network,
        source=source,
        views=views,
        scheduler=base.scheduler,
        empty_prompt=empty_prompt,
        settings=settings,
    )


def changed(profile: Profile, name: str) -> Profile:
    """The profile with the changes of an ablation.

    Args:
        profile: Profile of the adapter.
        name: Name in `ABLATIONS`, or ``fused``, of which only the recipe is copied.
    """
    changes = dict(ABLATIONS.get(name, {}))
    recipe = profile.recipe("adapter")
    share = changes.pop("steps_share", 1.0)
    changes["adapter"] = recipe.model_copy(update={"steps": max(1, round(share * recipe.steps))})
    return profile.model_copy(update={"training": profile.training.model_copy(update=changes)})


def train_method(
    profile: Profile,
    name: str,
    options: RunOptions = DEFAULTS,
    *,
    seed: int | None = None,
    run_name: str | None = None,
) -> Run:
    """Train a counterpart or an ablation, and write its folder.

    The seed draws which samples a run sees and in which order, the pair of pictures and the wording
    of each, its noise, its timestep and its dropouts; and the first weights of layers that do not
    begin as copies: IP-Adapter's projection, for example, but nothing of ``fused`` and
    ``decoupled`` under the profile's ``init: self_attention``. Two methods that are trained from
    one seed see the same samples under the same noise.

    Args:
        profile: Base model, the adapter's recipe, and shards.
        name: One of `NAMES`; or ``fused``, the profile's own adapter, from another seed.
        options: Options of the run, which begins with the first weights of its method. Its folder
            is by default that of its name in ``profile.counterparts``.
        seed: Seed of the training, by default the profile's.
        run_name: Name of the run, of its folder and of its records; by default the method's, with
            ``-seed-N`` where the seed is not the profile's.

    Raises:
        FusionError: There is no such method, the profile names no folder for it, a model or shard
            is missing, or the run is asked to start from other weights.
    """
    if options.start_from is not None:
        raise FusionError("--start-from is not for method: all begin with their first weights.")
    if name == "dreambooth":
        raise FusionError(
            "dreambooth learns each person by itself, when a study makes pictures of that person: "
            "there is nothing to train before."
        )
    other_seed = seed is not None and seed != profile.seed
    if name == "fused" and run_name is None and not other_seed:
        raise FusionError(
            "fused is the profile's own adapter: `fusionlib train adapter` trains it from seed "
            f"{profile.seed}. Give --seed another number to train it from that."
        )
    if name not in ("fused", *NAMES):
        raise FusionError(f"There is no method {name!r} to train: use one of {', '.join(NAMES)}.")
    if options.out is None and profile.counterparts is None:
        raise FusionError(
            f"The profile {profile.name!r} names no folder for it: give --out, or counterparts: in "
            "the profile."
        )
    run_name = run_name or (f"{name}-seed-{seed}" if other_seed else name)
    if seed is not None:
        profile = profile.model_copy(update={"seed": seed})
    ours = name == "fused" or name in ABLATIONS
    place = options.out or Path(str(profile.counterparts)) / run_name
    folder = own_folder(place, ADAPTER if ours else MADE, run_name)
    check_runs(profile, run_name)
    if ours:
        options = replace(options, out=folder)
        return fused.train(
            changed(profile, name), options, name=run_name, make_monitor=make_monitor
        )
    task = prepare(profile, name)
    recipe = profile.recipe("adapter")
    run = train_network(task.network, task.loss, profile, run_name, options, recipe=recipe)
    state = PartialState()
    if state.is_main_process:
        facts = {"seed": seed} if other_seed else {}
        _save(task.network, name, folder, profile, run, facts)
        copy_record(folder, run_folder(profile, run_name))
    state.wait_for_everyone()
    return run


def _save(
    network: Counterpart, name: str, folder: Path, profile: Profile, run: Run, more: dict[str, Any]
) -> None:
    """Write a counterpart's folder as a whole, with more facts in its configuration."""
    facts = {
        "method": name,
        "profile": profile.name,
        "base_model": Path(profile.base_model).name,
        "trained_parameters": run.parameters,
        "steps": run.steps,
        "options": COUNTERPARTS[name],
    }
    with replacing(folder, MADE) as partial:
        partial.mkdir(parents=True)
        network.save(partial)
        (partial / "config.json").write_text(json.dumps(facts | more, indent=2) + "\n", "utf-8")


def budgets(profile: Profile) -> pd.DataFrame:
    """The number of parameters that each method would train.

    Args:
        profile: Base model and its adapter's options.

    Returns:
        A table indexed by method, with the profile's own adapter first: ``parameters``, ``of the
        adapter's`` (their ratio to the first row), ``views`` of the reference that it reads.
    """
    base = checkpoint_folder(profile.base_model)
    unet = load_frozen(UNet2DConditionModel, base / "unet")
    counts: dict[str, tuple[int, str]] = {}
    for name in ("fused", *ABLATIONS):
        settings = profile.training if name == "fused" else changed(profile, name).training
        made = FusionAdapter.from_unet(unet, settings.init, settings.attention, settings.layers)
        counts[name] = (made.num_parameters(), "the UNet's own hidden states")
    for name in BUILDERS:
        network = build_network(profile, name)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        counts[name] = (trained, ", ".join(network.views))
    table = pd.DataFrame.from_dict(counts, orient="index", columns=["parameters", "views"])
    table.insert(1, "of the adapter's", table["parameters"] / table["parameters"].iloc[0])
    return table.rename_axis("method")
