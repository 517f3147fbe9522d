"""Training: the shared loop, its resumption, the losses, and each of the four models."""

import io
import itertools
import json
import math
import tarfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import CLIPModel

from companion.embedded import clip, vae
from companion.embedded import unet as base
from companion.embedded.losses import contrastive_loss, gaussian_kl, reconstruction_loss, word_loss
from fusionlib import FusionAdapter
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile, Recipe, load_profile
from fusionlib.training import adapter
from fusionlib.training.checkpoints import Start, checkpoint_folder
from fusionlib.training.denoising import (
    Drawn,
    denoising_loss,
    diffusion_loss,
    diffusion_target,
    dropout_masks,
    noised,
)
from fusionlib.training.encoders import face_weights
from fusionlib.training.export import half, half_module
from fusionlib.training.loop import Batch, fit, learning_rate, step_generator
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import RunOptions
from fusionlib.training.sources import Inputs

SIDE = 32


def write_shards(folder: Path, people: int = 6, views: int = 3) -> Path:
    """A few drawn discs in img2dataset's layout: one colour per person, one place per view."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for person in range(people):
            colour = tuple(int(c) for c in rng.integers(40, 255, 3))
            for view in range(views):
                image = Image.new("RGB", (SIDE, SIDE), (20, 30, 40 + 60 * view))
                mask = Image.new("L", (SIDE, SIDE), 0)
                box = (6 + 2 * view, 5, 24 + 2 * view, 27)
                ImageDraw.Draw(image).ellipse(box, fill=colour)
                ImageDraw.Draw(mask).ellipse(box, fill=255)
                style = "photo" if view else "line art"
                caption = f"a {style} of a face, view {view}"
                facts = {"person": person, "style": style, "captions": [caption, f"{style} face"]}
                key = f"{person * views + view:09d}"
                for extension, content in (
                    ("jpg", _encode(image, "JPEG")),
                    ("mask.png", _encode(mask, "PNG")),
                    ("txt", caption.encode()),
                    ("json", json.dumps(facts).encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The embedded profile, shrunk: every step of every recipe in seconds."""
    profile = shrunk(load_profile("embedded"), tmp_path_factory.mktemp("training"))
    recipe = Recipe(steps=4, batch_size=4, learning_rate=1e-3, warmup_steps=1)
    for name in ("vae_quarter", "vae_half", "vae", "clip", "clip_images", "base", "adapter"):
        setattr(profile.training, name, recipe)
    return profile


def shrunk(profile: Profile, root: Path) -> Profile:
    """Small models and a few pictures, in a folder; the recipes stay as they are."""
    profile.training.shards = str(write_shards(root / "shards"))
    profile.training.runs = str(root / "runs")
    profile.training.sample_every = 0
    profile.base_model = str(root / "model")
    profile.adapter = str(root / "model" / "adapter")
    profile.resolution = SIDE
    sizes = profile.architecture
    sizes["vae"] |= {
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": SIDE,
    }
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes["text"] |= tower
    sizes["vision"] |= tower | {"image_size": SIDE, "patch_size": 8}
    sizes["clip"] |= {"projection_dim": 16, "vocab_size": 530}
    sizes["unet"] |= {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [16, 32],
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return profile


def test_the_four_models_make_a_stable_diffusion_checkpoint(profile: Profile) -> None:
    for module in (vae, clip, base, adapter):
        run = module.train(profile)
        assert run.finished and run.samples == 16 and math.isfinite(run.final_loss)

    folder = Path(profile.base_model)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["sampling_defaults"] == profile.sampling
    pipeline = StableDiffusionPipeline.from_pretrained(folder)  # unchanged diffusers
    images = pipeline(
        "a photo of a face", num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    ).images
    assert images[0].size == (SIDE, SIDE)
    trained = FusionAdapter.from_pretrained(profile.adapter)
    untrained = FusionAdapter.from_unet(pipeline.unet)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(trained.parameters(), untrained.parameters(), strict=True)
    ]
    assert all(moved)
    for record in ("vae_quarter", "vae_half", "vae", "clip", "clip_images", "base"):
        assert json.loads((folder / "training" / f"{record}.json").read_text())["steps"] == 4
        assert (folder / "training" / f"{record}.csv").read_text().startswith("step,samples")


def test_the_recipes_for_a_gpu_are_the_cpus_but_larger_and_longer() -> None:
    cpu, gpu = (load_profile(name) for name in ("embedded", "embedded_gpu"))
    recipes = [name for name, value in cpu.training if isinstance(value, Recipe)]
    assert len(recipes) == 10
    sizes = {"steps", "batch_size", "learning_rate", "warmup_steps", "ema_decay", "attention"}
    for name in recipes:
        one, other = cpu.recipe(name), gpu.recipe(name)
        assert one.model_dump(exclude=sizes) == other.model_dump(exclude=sizes), name
        assert other.batch_size > one.batch_size and other.warmup_steps < other.steps / 10
        assert other.steps * other.batch_size > one.steps * one.batch_size, name
        assert other.ema_decay >= one.ema_decay and other.attention == "auto"
        setattr(gpu.training, name, one)
    assert gpu.model_copy(update={"name": cpu.name}) == cpu


def test_a_weight_is_kept_with_eight_significant_bits() -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    kept = half(weight)
    assert kept.dtype == torch.float16
    assert ((kept.float() - weight).abs() <= weight.abs() / 2**8).all()
    assert not (kept.view(torch.int16) & 0b111).any()  # what git need not store
    layer = torch.nn.Linear(3, 2)
    assert torch.equal(half_module(layer).weight, half(layer.weight))
    assert layer.weight.dtype == torch.float32


def test_the_recipes_for_a_gpu_run(tmp_path: Path) -> None:
    """Two steps of each of the four models, with the batches that a GPU gets."""
    gpu = shrunk(load_profile("embedded_gpu"), tmp_path)
    for module, model in ((vae, "vae"), (clip, "clip"), (base, "base"), (adapter, "adapter")):
        run = module.train(gpu, RunOptions(steps=2))
        assert run.samples == 2 * gpu.recipe(model).batch_size and math.isfinite(run.final_loss)


def test_the_base_stays_frozen_while_the_adapter_trains(profile: Profile) -> None:
    unet = UNet2DConditionModel.from_pretrained(Path(profile.base_model) / "unet")
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    adapter.train(profile, RunOptions(steps=6))
    after = UNet2DConditionModel.from_pretrained(Path(profile.base_model) / "unet").state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_references_encoded_in_every_step_train_the_same(profile: Profile, tmp_path: Path) -> None:
    losses = []
    for cache in (True, False):
        changed = profile.model_copy(deep=True)
        changed.training.cache_references = cache
        changed.training.runs = str(tmp_path / str(cache))
        options = RunOptions(tmp_path / f"adapter-{cache}")
        losses.append(adapter.train(changed, options).final_loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # bfloat16 in the cache


def test_a_run_can_start_from_trained_weights(profile: Profile, tmp_path: Path) -> None:
    """Steps of rate 0 change nothing: the run writes the weights that it started from."""
    start = Path(profile.base_model)
    still = profile.model_copy(deep=True)
    still.training.runs = str(tmp_path / "runs")
    recipe = Recipe(steps=2, batch_size=4, learning_rate=1e-30, warmup_steps=1, weight_decay=0)
    for name in ("vae", "clip", "clip_images", "base", "adapter"):
        setattr(still.training, name, recipe)
    copy = tmp_path / "copy"
    for module in (vae, clip, base):
        run = module.train(still, RunOptions(copy, start_from=start))
        assert run.started_from is not None and "sha256" in run.started_from
        assert (run.samples, run.samples_before) == (8, 16)
    adapter.train(still, RunOptions(copy / "adapter", start_from=Path(profile.adapter)))
    for part in ("vae", "clip", "text_encoder", "unet", "adapter"):
        (before,) = (start / part).glob("*.safetensors")
        (after,) = (copy / part).glob("*.safetensors")
        assert after.read_bytes() == before.read_bytes(), part
    for part in ("vae/config.json", "tokenizer/vocab.json"):
        assert (copy / part).read_text() == (start / part).read_text()
    with pytest.raises(FusionError, match="another architecture"):
        other = still.model_copy(deep=True)
        other.architecture["unet"]["block_out_channels"] = [16, 16]
        base.train(other, RunOptions(copy, start_from=start))


def test_the_image_tower_goes_on_alone(profile: Profile, tmp_path: Path) -> None:
    """The UNet is conditioned on the text tower, which must not move once it is finished."""
    alone = profile.model_copy(deep=True)
    alone.training.runs = str(tmp_path / "runs")
    alone.training.clip_images = None
    clip.train(alone, RunOptions(tmp_path / "before"))
    alone.training.clip_images = profile.training.clip_images
    # The first recipe is finished: only the second runs.
    clip.train(alone, RunOptions(tmp_path / "after"))
    before, after = (
        CLIPModel.from_pretrained(tmp_path / name / "clip").state_dict()
        for name in ("before", "after")
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("vision_model") for name in moved)
    assert not any(name.startswith("text") for name in moved)
    encoders = [
        (tmp_path / name / "text_encoder" / "model.safetensors").read_bytes()
        for name in ("before", "after")
    ]
    assert encoders[0] == encoders[1]


def test_the_encoder_goes_on_when_asked_to(profile: Profile, tmp_path: Path) -> None:
    start = Path(profile.base_model)
    moved = {}
    for encoder in (False, True):
        again = profile.model_copy(deep=True)
        again.training.runs = str(tmp_path / f"runs-{encoder}")
        options = RunOptions(tmp_path / str(encoder), start_from=start)
        vae.train(again, options, encoder=encoder)
        before, after = (
            AutoencoderKL.from_pretrained(folder / "vae").encoder.state_dict()
            for folder in (start, tmp_path / str(encoder))
        )
        moved[encoder] = {key for key in before if not torch.equal(before[key], after[key])}
    assert not moved[False]
    assert moved[True] and not any(key.startswith("conv_in") for key in moved[True])


def test_mirror_images_follow_the_pictures(profile: Profile) -> None:
    pictures = load_pictures(profile.training.shards, SIDE)
    both = pictures.mirrored()
    assert len(both) == 2 * len(pictures)
    mirror = both.batch(torch.arange(len(pictures), 2 * len(pictures)))
    assert torch.equal(mirror.flip(-1), pictures.batch(torch.arange(len(pictures))))
    assert both.captions[len(pictures)] == pictures.captions[0]
    assert both.person[len(pictures) + 3] == pictures.person[3]


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(FusionError, match="no/such-model"):
        checkpoint_folder("no/such-model")


def test_the_encoder_is_final_before_the_last_doubling(profile: Profile) -> None:
    """What the encoder makes of a picture is what it made of the picture at half the side."""
    torch.manual_seed(0)
    model = AutoencoderKL(**profile.architecture["vae"])
    growing = vae.GrowingAutoencoder(model)
    pixels = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        whole = model.encode(pixels).latent_dist.mean
        growing.leave_out(1)
        half = model.encode(nn.functional.avg_pool2d(pixels, 2)).latent_dist.mean
        assert model.decode(half).sample.shape[-1] == SIDE // 2
        growing.leave_out(0)
        assert model.decode(half).sample.shape[-1] == SIDE
    torch.testing.assert_close(whole, half, atol=1e-4, rtol=1e-4)
    growing.freeze_encoder()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("encoder", "quant")) for name in learning)
    assert any(name.startswith("decoder") for name in learning)


def test_centring_leaves_reconstructions_and_whitens_latents() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    pixels = torch.rand(8, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = model.encode(pixels).latent_dist.mean
        decoded = model.decode(before).sample
        vae.centre_latents(model, before)
        after = model.encode(pixels).latent_dist.mean
        torch.testing.assert_close(model.decode(after).sample, decoded, atol=1e-4, rtol=1e-4)
    scaled = after * model.config["scaling_factor"]
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    assert abs(scaled.std().item() - 1) < 1e-3


RECIPE = Recipe(
    steps=12, batch_size=4, learning_rate=0.05, warmup_steps=2, mixed_precision="no",
    checkpoint_minutes=1e-6,
)  # fmt: skip


def _regression(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    inputs = torch.randn(4, 3, generator=batch.generator)
    return {"loss": (network(inputs) - inputs.sum(1, keepdim=True)).square().mean()}


def _linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 1)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    unbroken = _linear()
    fit(unbroken, _regression, RECIPE, tmp_path / "unbroken")

    calls = 0

    def killed(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return _regression(network, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(_linear(), killed, RECIPE, tmp_path / "broken")
    resumed = _linear()
    run = fit(resumed, _regression, RECIPE, tmp_path / "broken")
    assert run.steps == 12
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    steps = [
        [line.split(",")[0] for line in (tmp_path / name / "loss.csv").read_text().splitlines()]
        for name in ("unbroken", "broken")
    ]
    assert steps[0] == steps[1]


def test_a_resumed_run_counts_on_from_where_it_stopped(tmp_path: Path) -> None:
    """Samples, seconds, first weights, and the mean that was incomplete when the run stopped."""
    seen: list[range] = []

    def loss(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch.samples)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return _regression(network, batch)

    logs = []
    for stop in (0, 6):
        seen.clear()
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            run = fit(_linear(), loss, RECIPE, folder, start=Start("before", 48))
        if stop:
            state = torch.load(folder / "checkpoint.pt", weights_only=True)
            torch.save(state | {"seconds": 1000.0}, folder / "checkpoint.pt")
            seen.pop()
            stop = 0
            run = fit(_linear(), loss, RECIPE, folder)
            assert run.seconds >= 1000
        assert seen == [range(4 * step, 4 * step + 4) for step in range(12)]
        assert (run.started_from, run.samples_before, run.samples) == ("before", 48, 48)
        rows = pd.read_csv(folder / "loss.csv")
        assert rows["step"].tolist() == [10, 12] and rows["samples"].tolist() == [48 + 40, 48 + 48]
        logs.append(rows.drop(columns="seconds"))
    pd.testing.assert_frame_equal(*logs)


def test_what_a_batch_says_nothing_of_does_not_count(tmp_path: Path) -> None:
    step = 0

    def loss(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal step
        step += 1
        told = torch.tensor(float(step) if step % 2 else math.nan)
        return {**_regression(network, batch), "odd": told, "never": torch.tensor(math.nan)}

    fit(_linear(), loss, RECIPE, tmp_path)
    rows = pd.read_csv(tmp_path / "loss.csv")
    assert rows["odd"].tolist() == [np.mean([1, 3, 5, 7, 9]), 11]
    assert rows["never"].isna().all()


def test_gradients_are_clipped_and_every_part_of_a_step_draws_anew(tmp_path: Path) -> None:
    norms: list[float] = []
    drawn: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    def steep(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        inputs = torch.randn(4, 3, generator=batch.generator)
        drawn.append(float(inputs[0, 0]))
        return {"loss": 1e3 * network(inputs).square().mean()}

    recipe = RECIPE.model_copy(update={"steps": 3, "gradient_accumulation": 2})
    hook = register_optimizer_step_pre_hook(note)
    try:
        fit(_linear(), steep, recipe, tmp_path)
    finally:
        hook.remove()
    assert norms == pytest.approx([1.0] * 3, rel=1e-4)
    assert len(set(drawn)) == 6


def test_a_run_leaves_its_last_state_however_seldom_it_saves(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"checkpoint_minutes": 60})
    fit(_linear(), _regression, recipe, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 12


def test_training_fits_a_line(tmp_path: Path) -> None:
    network = _linear()
    recipe = RECIPE.model_copy(update={"steps": 400, "ema_decay": 0.9})
    run = fit(network, _regression, recipe, tmp_path)
    assert run.final_loss < 1.0
    assert isinstance(network, nn.Linear)
    torch.testing.assert_close(network.weight.detach(), torch.ones(1, 3), atol=0.02, rtol=0)


def test_time_limit_stops_early_with_a_checkpoint(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"steps": 10**6})
    run = fit(_linear(), _regression, recipe, tmp_path, minutes=1e-4)
    assert not run.finished and (tmp_path / "checkpoint.pt").is_file()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(_linear(), _regression, RECIPE, tmp_path)
    with pytest.raises(FusionError, match="another network"):
        fit(nn.Sequential(_linear()), _regression, RECIPE, tmp_path)
    with pytest.raises(FusionError, match="another seed"):
        fit(_linear(), _regression, RECIPE, tmp_path, seed=1)


@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "something else"])
def test_a_damaged_checkpoint_is_named_and_what_to_do(tmp_path: Path, damage: str) -> None:
    fit(_linear(), _regression, RECIPE, tmp_path, steps=2)
    checkpoint = tmp_path / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    if damage == "something else":
        torch.save({"a": 1}, checkpoint)
    else:
        texts = {"cut short": whole[: len(whole) // 2], "empty": b"", "text": b"garbage\n"}
        checkpoint.write_bytes(texts[damage])
    with pytest.raises(FusionError, match=r"checkpoint.pt is damaged.* use --fresh"):
        fit(_linear(), _regression, RECIPE, tmp_path)
    assert fit(_linear(), _regression, RECIPE, tmp_path, resume=False).finished


def test_a_checkpoint_over_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    """A base that was trained again needs a new adapter: the old run must not continue over it."""

    def over(bias: float) -> nn.Module:
        network = _linear()
        with torch.no_grad():
            network.bias.fill_(bias)  # type: ignore[union-attr,operator]
        network.bias.requires_grad_(False)  # type: ignore[union-attr,operator]
        return network

    fit(over(0.0), _regression, RECIPE, tmp_path)
    fit(over(0.0), _regression, RECIPE, tmp_path, steps=14)
    with pytest.raises(FusionError, match="other frozen weights"):
        fit(over(1.0), _regression, RECIPE, tmp_path)


def test_weights_that_went_before_draw_anew(tmp_path: Path) -> None:
    """The same seed would show them the same pictures with the same noise again."""
    seen: dict[int, list[torch.Tensor]] = {0: [], 48: []}
    for samples, drawn in seen.items():

        def loss(
            network: nn.Module, batch: Batch, drawn: list[torch.Tensor] = drawn
        ) -> dict[str, torch.Tensor]:
            drawn.append(torch.randn(3, generator=batch.generator))
            drawn.append(torch.randn(3, generator=batch.sample_generators()[0]))
            return _regression(network, batch)

        fit(_linear(), loss, RECIPE, tmp_path / str(samples), start=Start("x", samples))
    assert not any(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path: Path) -> None:
    calls = 0

    def breaks(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        loss = _regression(network, batch)["loss"]
        return {"loss": loss * float("nan") if calls > 3 else loss}

    with pytest.raises(FusionError, match="last good state"):
        fit(_linear(), breaks, RECIPE, tmp_path)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 3 and all(value.isfinite().all() for value in kept["weights"].values())


def test_plain_attention_trains_the_same_without_torchs_own_kernel(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.line = nn.Linear(8, 8)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            heads = self.line(inputs)[:, None]
            return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)

    def loss(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        inputs = torch.randn(2, 5, 8, generator=batch.generator)
        return {"loss": (network(inputs)[:, 0] - inputs).square().mean()}

    trained, kernels = {}, {}
    for kind in ("auto", "plain"):
        network = trained[kind] = Attends()
        recipe = RECIPE.model_copy(update={"attention": kind})
        with torch.profiler.profile() as profiled:
            fit(network, loss, recipe, tmp_path / kind)
        kernels[kind] = any("flash" in event.key for event in profiled.key_averages())
    torch.testing.assert_close(trained["plain"].state_dict(), trained["auto"].state_dict())
    assert kernels == {"auto": True, "plain": False}


def test_a_loss_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    def broken(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": network(torch.full((1, 3), float("nan"))).mean()}

    with pytest.raises(FusionError, match="loss is .*nan"):
        fit(_linear(), broken, RECIPE, tmp_path)


def test_learning_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=100, batch_size=1, learning_rate=2.0, warmup_steps=10, cooldown=0.2)
    rates = [learning_rate(step, recipe, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == 2.0 and rates[80] == 2.0
    assert rates[90] == pytest.approx(1.0) and rates[100] == 0.0


def test_steps_and_processes_draw_differently() -> None:
    draws = {torch.rand(1, generator=step_generator(0, s, p)).item()
             for s in range(20) for p in range(4)}  # fmt: skip
    assert len(draws) == 80


def test_broken_samples_are_counted_and_shards_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "good")
    with tarfile.open(folder / "00001.tar", "w") as archive:
        for name in ("000000900.jpg", "000000900.txt", "000000900.json"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"{bad}"))
    pictures = load_pictures(folder, SIDE)
    assert len(pictures) == 18 and pictures.skipped == 1
    (folder / "00002.tar").write_bytes(b"not a tar")
    with pytest.raises(FusionError, match=r"00002\.tar"):
        load_pictures(folder, SIDE)
    with pytest.raises(FusionError, match="no shard"):
        load_pictures(tmp_path / "nowhere", SIDE)


def test_dropout_cases_exclude_each_other_and_have_their_shares() -> None:
    draw = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    no_text, no_reference = dropout_masks(draw, 0.05, 0.10, 0.20)
    both = (no_text & no_reference).float().mean().item()
    assert both == pytest.approx(0.20, abs=0.01)
    assert no_text.float().mean().item() - both == pytest.approx(0.05, abs=0.01)
    assert no_reference.float().mean().item() - both == pytest.approx(0.10, abs=0.01)


def test_velocity_target_recovers_the_latents() -> None:
    """x_0 = sqrt(a) x_t - sqrt(1 - a) v, from the definition of v (Salimans and Ho 2022)."""
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    latents, noise = torch.randn(2, 5, 4, 8, 8).unbind()
    timesteps = torch.tensor([0, 10, 400, 800, 999])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = diffusion_target(scheduler, latents, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    torch.testing.assert_close(
        alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, latents, atol=1e-4, rtol=1e-4
    )


def test_what_a_unet_predicts_is_what_its_scheduler_says() -> None:
    latents, noise, timesteps = (
        torch.zeros(2, 4, 2, 2),
        torch.ones(2, 4, 2, 2),
        torch.tensor([1, 9]),
    )
    for kind, expected in (("epsilon", noise), ("sample", latents)):
        scheduler = DDIMScheduler(prediction_type=kind)
        assert torch.equal(diffusion_target(scheduler, latents, noise, timesteps), expected)
    with pytest.raises(ValueError, match="unknown prediction_type 'score'"):
        diffusion_target(DDIMScheduler(prediction_type="score"), latents, noise, timesteps)


def test_noisy_samples_are_favoured_by_the_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """t with a density that grows like t ** (power - 1): its mean is power / (power + 1)."""
    scheduler, latents = DDIMScheduler(), torch.zeros(20_000, 1, 1, 1)
    for power in (0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(0)
        _, timesteps, _ = noised(scheduler, latents, generator, timestep_power=power)
        assert timesteps.float().mean().item() == pytest.approx(1000 * power / (power + 1), abs=6)
    nearly_one = 1 - 2**-24  # the largest that can be drawn
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, nearly_one))
    _, timesteps, _ = noised(scheduler, latents[:1], torch.Generator(), timestep_power=4.0)
    assert timesteps.tolist() == [999]


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_timesteps_are_weighted_where_a_profile_says_so(gamma: float | None) -> None:
    changes = {"min_snr_gamma": gamma, "timestep_power": 0.2}  # of which few are noisy
    settings = load_profile("embedded").training.model_copy(update=changes)
    latents, text = torch.zeros(4, 4, 2, 2), torch.zeros(4, 3, 8)
    weights = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    scheduler, seen = DDIMScheduler(), []

    def predict(drawn: Drawn) -> torch.Tensor:
        seen.append(drawn)
        return torch.zeros_like(latents)  # so that the noise is the error

    batch = Batch(0, range(4), 4, step_generator(0))
    inputs = Inputs(latents, weights, text, latents)
    terms = denoising_loss(inputs, batch, scheduler, text[:1], settings, predict)
    alpha = scheduler.alphas_cumprod[seen[0].timesteps][:, None, None, None]
    error = seen[0].noisy.square() / (1 - alpha)  # of latents that are 0
    if gamma is not None:
        by_time = (gamma * (1 - alpha) / alpha).clamp(max=1)
        assert by_time.min() < 0.5
        error = error * by_time
    torch.testing.assert_close(terms["loss"], (error * weights).mean())


def test_word_loss_counts_every_word_and_the_end_once() -> None:
    embeddings = torch.eye(5)
    ids = torch.tensor([[3, 1, 2, 4, 4, 4], [3, 2, 4, 4, 4, 4]])  # 4 ends a text and pads it
    states = embeddings[ids]
    read = word_loss(states * 50, embeddings, ids, end=4)
    torch.testing.assert_close(read, torch.tensor(0.0))
    padding = states.clone()
    padding[:, 4:] = 7.0  # never read
    torch.testing.assert_close(word_loss(padding * 50, embeddings, ids, end=4), read)
    wrong = states.clone()
    wrong[0, 1] = embeddings[0]  # one of seven words is taken for another
    torch.testing.assert_close(
        word_loss(wrong * 50, embeddings, ids, end=4), torch.tensor(50.0 / 7)
    )


def test_face_weights_favour_the_face_and_have_mean_one() -> None:
    masks = torch.zeros(2, 16, 16)
    masks[0, 4:12, 4:12] = 1
    weights = face_weights(masks, (4, 4))
    assert weights.shape == (2, 1, 4, 4)
    # Four of sixteen positions count five times as much as the other twelve.
    expected = torch.full((4, 4), 16 / (12 + 4 * 5))
    expected[1:3, 1:3] *= 5
    torch.testing.assert_close(weights[0, 0], expected)
    assert torch.equal(weights[1], torch.ones(1, 4, 4))  # no mask: the plain error
    many = masks.repeat(150, 1, 1)  # more than are converted at once
    torch.testing.assert_close(face_weights(many, (4, 4)), weights.repeat(150, 1, 1, 1))
    prediction, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    terms = diffusion_loss(prediction, target, weights)
    by_hand = sum(
        (weights[n, 0, y, x] * (prediction - target)[n, c, y, x] ** 2) / (2 * 3 * 4 * 4)
        for n in range(2) for c in range(3) for y in range(4) for x in range(4)
    )  # fmt: skip
    torch.testing.assert_close(terms["loss"], torch.as_tensor(by_hand))
    torch.testing.assert_close(terms["mse"], nn.functional.mse_loss(prediction, target))


def test_losses_against_direct_computation() -> None:
    mean, log_variance = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected.sum((1, 2, 3)).mean())

    pixels = torch.randn(2, 3, 4, 4)
    shifted = reconstruction_loss(pixels + 0.5, pixels, torch.ones(2, 1, 4, 4))
    torch.testing.assert_close(shifted, torch.tensor(0.5))  # a constant has no edges
    off, weight = torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    parts: list[list[float]] = [[], [], []]
    for n, c, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        here, counts = off[n, c, y, x], float(weight[n, 0, y, x])
        parts[0].append(counts * float(here.abs()))
        if x:
            parts[1].append(counts * float((here - off[n, c, y, x - 1]).abs()))
        if y:
            parts[2].append(counts * float((here - off[n, c, y - 1, x]).abs()))
    found = reconstruction_loss(off, torch.zeros_like(off), weight).item()
    assert found == pytest.approx(sum(sum(part) / len(part) for part in parts), rel=1e-5)

    aligned = torch.eye(4)
    perfect = contrastive_loss(aligned, aligned * 3, torch.tensor(math.log(100.0)))
    assert perfect.item() < 1e-6
    none = contrastive_loss(torch.ones(4, 2), torch.ones(4, 2), torch.tensor(1.0))
    assert none.item() == pytest.approx(math.log(4))
    image, text = torch.randn(5, 3), torch.randn(5, 3)
    cosine = torch.tensor(
        [[float(a @ b) / float(a.norm() * b.norm()) for b in text] for a in image]
    )
    for warmth, factor in ((2.0, math.exp(2.0)), (9.0, 100.0)):  # the factor is limited to 100
        shares = [(factor * cosine).log_softmax(dim).diagonal() for dim in (0, 1)]
        both = -(shares[0].mean() + shares[1].mean()) / 2
        torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(warmth)), both)


def test_tokenizer_encodes_any_text(tmp_path: Path) -> None:
    tokenizer = clip.train_tokenizer(["a photo of a laughing woman"] * 20, 560, tmp_path)
    ids = tokenizer("a laughing woman").input_ids
    assert len(ids) == 5  # start, three learned words, end
    assert (
        "<|endoftext|>" not in tokenizer.convert_ids_to_tokens(tokenizer("ñandú 😀").input_ids)[:-1]
    )
