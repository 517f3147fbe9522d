"""The depth ControlNet: silent when new, it learns to follow depth maps, and works with faces."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from companion.embedded import controlnet
from companion.embedded.controlnet import Controlled, as_control, new_controlnet
from fusionlib import FusionControlNetPipeline, masks_from_colors
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile, Recipe, load_profile
from fusionlib.training.cached import cached_latents
from fusionlib.training.denoising import noised
from fusionlib.training.pictures import load_pictures
from fusionlib.training.runs import RunOptions
from tests.helpers.tiny import RESOLUTION, tiny_unet, write_tiny_checkpoint
from tests.helpers.training_data import encoded, sample, write_tar

FACTOR = 4  # of the tiny autoencoder


def write_depth_set(folder: Path) -> Path:
    """Bright squares on dark ground, anywhere; only the depth map tells where."""
    rng = np.random.default_rng(0)
    samples = {}
    for number in range(24):
        row, column = rng.integers(0, RESOLUTION - 16, 2)
        depth = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
        depth[row : row + 16, column : column + 16] = 255
        image = np.repeat(depth[..., None], 3, -1)
        depth_map = encoded(Image.fromarray(depth), "PNG")
        files = sample(number, encoded(Image.fromarray(image)), person=number, caption="a face")
        samples[f"{number:09d}"] = files | {"depth.png": depth_map, "mask.png": depth_map}
    write_tar(folder / "00000.tar", samples)
    return folder


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    root = tmp_path_factory.mktemp("controlnet")
    profile = load_profile("embedded")
    base = write_tiny_checkpoint(root / "base")
    profile.base_model = str(base)
    # In what is to be predicted the picture must weigh as much as the noise.
    for file, change in (
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("vae/config.json", {"scaling_factor": 3.0}),
    ):
        config = json.loads((base / file).read_text())
        (base / file).write_text(json.dumps(config | change))
    profile.controlnet = str(root / "model" / "controlnet")
    profile.resolution = RESOLUTION
    profile.training.shards = str(write_depth_set(root / "shards"))
    profile.training.runs = str(root / "runs")
    profile.training.controlnet = Recipe(
        steps=40, batch_size=16, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9,
        mixed_precision="no",
    )  # fmt: skip
    profile.architecture["controlnet"] = {"conditioning_embedding_out_channels": [8, 8, 8]}
    return profile


@pytest.fixture(scope="module")
def trained(profile: Profile) -> ControlNetModel:
    run = controlnet.train(profile)
    assert run.finished and run.samples == 640 and math.isfinite(run.final_loss)
    assert profile.controlnet is not None
    assert (Path(profile.controlnet).parent / "training" / "controlnet.csv").is_file()
    return ControlNetModel.from_pretrained(profile.controlnet).eval()  # unchanged diffusers


@torch.no_grad()
def error(profile: Profile, model: ControlNetModel, shift: int = 0) -> float:
    """The UNet's error on the training set, with the depth maps of `shift` samples further on."""
    base = Path(profile.base_model)
    pictures = load_pictures(profile.training.shards, RESOLUTION, depth=True)
    latents = cached_latents(base, pictures, Path(profile.training.runs) / "t", torch.device("cpu"))
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    noisy, timesteps, goal = noised(scheduler, latents, torch.Generator().manual_seed(1))
    network = Controlled(UNet2DConditionModel.from_pretrained(base / "unet").eval(), model)
    control = as_control(torch.from_numpy(np.roll(pictures.depth, shift, 0)))
    text = torch.zeros(len(noisy), 16, 16)
    return (network(noisy, timesteps, text, control) - goal).square().mean().item()


def test_a_new_one_leaves_the_base_bit_by_bit(profile: Profile) -> None:
    unet = tiny_unet()
    model = new_controlnet(profile, unet, FACTOR).eval()
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 16, 16, generator=generator)
    depth = torch.randint(256, (2, RESOLUTION, RESOLUTION), generator=generator)
    timesteps = torch.tensor([3, 900])
    with torch.no_grad():
        alone = unet(noisy, timesteps, text).sample
        steered = Controlled(unet, model)(noisy, timesteps, text, as_control(depth))
    assert torch.equal(alone, steered)


def test_a_few_steps_lower_the_loss_by_what_the_depth_map_tells(
    profile: Profile, trained: ControlNetModel
) -> None:
    unet = UNet2DConditionModel.from_pretrained(Path(profile.base_model) / "unet")
    silent = error(profile, new_controlnet(profile, unet, FACTOR).eval())
    right, wrong = error(profile, trained), error(profile, trained, shift=1)
    assert right < 0.9 * silent
    assert right < 0.97 * wrong


def test_a_depth_map_arrives_at_a_new_one_through_all_its_layers() -> None:
    """At the size of the embedded models, whose embedding is nine layers deep."""
    settings = load_profile("embedded")
    unet = UNet2DConditionModel(**settings.architecture["unet"])
    embedding = new_controlnet(settings, unet, 16).controlnet_cond_embedding
    ramp = torch.linspace(0, 255, settings.resolution).byte().expand(settings.resolution, -1)
    pixels = as_control(torch.stack([ramp, ramp.flip(1), ramp.T, ramp.flip(1).T]))
    assert not embedding(pixels).any()  # it is silent
    embedding.conv_out = torch.nn.Identity()
    seen = embedding(pixels)
    assert (
        seen - seen.mean(0)
    ).std() > 0.05 * pixels.std()  # a few millionths with torch's weights


def test_training_leaves_the_base_as_it_was_and_goes_on(
    profile: Profile, trained: ControlNetModel, tmp_path: Path
) -> None:
    (file,) = (Path(profile.base_model) / "unet").glob("*.safetensors")
    before = file.read_bytes()
    short = profile.model_copy(deep=True)
    short.training.runs = str(tmp_path / "runs")
    assert controlnet.train(short, RunOptions(tmp_path / "new", steps=2)).steps == 2
    resumed = controlnet.train(short, RunOptions(tmp_path / "new", steps=4))
    assert resumed.samples == 64
    (weights,) = (tmp_path / "new").glob("*.safetensors")
    one = weights.read_bytes()
    short.training.runs = str(tmp_path / "other")
    still = profile.recipe("controlnet").model_copy(
        update={"learning_rate": 1e-30, "weight_decay": 0.0}
    )
    short.training.controlnet = still
    run = controlnet.train(
        short, RunOptions(tmp_path / "copy", steps=1, start_from=tmp_path / "new")
    )
    assert run.started_from is not None
    assert (tmp_path / "copy" / weights.name).read_bytes() == one
    assert file.read_bytes() == before


def test_faces_stand_where_masks_and_depth_put_them(
    profile: Profile, trained: ControlNetModel
) -> None:
    pipeline = FusionControlNetPipeline.from_pretrained(profile.base_model, controlnet=trained)
    pipeline.set_progress_bar_config(disable=True)
    # As the data set's mask of a group: palette numbers 0, 1, 2.
    labels = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
    labels[8:24, 2:14], labels[8:24, 18:30] = 1, 2
    drawn = Image.fromarray(labels)
    drawn.putpalette([0, 0, 0, 255, 140, 120, 140, 230, 140])
    masks = masks_from_colors(drawn, [1, 2], size=(RESOLUTION, RESOLUTION))
    rng = np.random.default_rng(3)
    faces = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(2)]

    def generate(depth: Image.Image, order: tuple[int, int] = (0, 1)) -> np.ndarray:
        return pipeline(
            "two people",
            image=depth,
            references=[faces[i] for i in order],
            identity_masks=masks,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]

    depth = Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).convert("RGB")
    image = generate(depth)
    assert image.shape == (RESOLUTION, RESOLUTION, 3) and np.isfinite(image).all()
    assert np.abs(image - generate(Image.new("RGB", depth.size))).max() > 1e-3
    assert np.abs(image - generate(depth, (1, 0))).max() > 1e-4


def test_what_does_not_fit_is_named(profile: Profile) -> None:
    with pytest.raises(FusionError, match="by 4, and the autoencoder by 8: .* 4 numbers"):
        new_controlnet(profile, tiny_unet(), 8)
    nowhere = profile.model_copy(update={"controlnet": None})
    with pytest.raises(FusionError, match="--out"):
        controlnet.train(nowhere)


def test_the_embedded_profile_fits_its_models() -> None:
    profile = load_profile("embedded")
    unet = UNet2DConditionModel(**profile.architecture["unet"])
    side = profile.resolution // profile.architecture["unet"]["sample_size"]
    model = new_controlnet(profile, unet, side)
    control = torch.zeros(1, 3, profile.resolution, profile.resolution)
    assert model.controlnet_cond_embedding(control).shape[-2:] == (8, 8)


def test_a_whole_pipeline_is_no_folder_for_one_model(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FusionError, match="holds a whole pipeline"):
        controlnet.train(profile, RunOptions(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["model_index.json"]
