"""A checkpoint in the Stable Diffusion folder layout, written and run in a second.

The weights are random: images made with it are noise, but every code path of a real checkpoint is
taken. ``write_tiny_checkpoint`` is a plain function that tests, scripts and benchmarks share.
"""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

CONTEXT_LENGTH = 16  # text tokens
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Noise schedule of every Stable Diffusion checkpoint."""
RESOLUTION = 32  # pixels
WIDTH = 16  # of the text, and of the first UNet block


def write_tiny_tokenizer(folder: Path, length: int = CONTEXT_LENGTH) -> CLIPTokenizer:
    """Write ``vocab.json`` and ``merges.txt`` of a byte-level CLIP tokenizer, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]  # printable ASCII stands for itself
    letters += [chr(c) for c in [*range(0xA1, 0xAD), *range(0xAE, 0x100)]]
    letters += [chr(0x100 + i) for i in range(256 - len(letters))]  # and the other bytes, shifted
    merges = [("f", "a"), ("c", "e</w>"), ("fa", "ce</w>"), ("o", "f</w>")]
    words = letters + [letter + "</w>" for letter in letters]
    words += [left + right for left, right in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length
    )


def tiny_unet(**changes: object) -> UNet2DConditionModel:
    """A UNet of about 0.2 M random parameters with cross-attention at 8x8 and at 4x4."""
    config: dict[str, object] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (WIDTH, 2 * WIDTH),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,  # diffusers' name for the number of heads
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | changes)).eval()


def tiny_vae() -> AutoencoderKL:
    """An autoencoder with 4 channels and a factor of 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
    ).eval()


def tiny_controlnet(unet: UNet2DConditionModel, seed: int = 0) -> ControlNetModel:
    """A ControlNet for a tiny UNet that has something to say (a new one is silent)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8))
        with torch.no_grad():
            for weight in controlnet.parameters():
                if not weight.any():
                    weight.normal_(std=0.5)
    return controlnet.eval()


def write_tiny_xl_checkpoint(folder: Path | str, seed: int = 0) -> Path:
    """Write a checkpoint in SDXL's layout, two text encoders and all, with ``adapter/``."""
    from fusionlib.adapter import FusionAdapter

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = write_tiny_tokenizer(folder / "tokenizer")
        widths = (WIDTH, WIDTH + 8)
        configs = [
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=2,
                projection_dim=width,
                hidden_act=activation,
                vocab_size=len(tokenizer),
                max_position_embeddings=CONTEXT_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            for width, activation in zip(widths, ("quick_gelu", "gelu"), strict=True)
        ]
        time_width = 8
        unet = tiny_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=sum(widths),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=widths[1] + 6 * time_width,
        )
        pipeline = StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=CLIPTextModel(configs[0]).eval(),
            text_encoder_2=CLIPTextModelWithProjection(configs[1]).eval(),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        )
        adapter = FusionAdapter.from_unet(unet, init="random")
    pipeline.save_pretrained(folder)
    adapter.save_pretrained(folder / "adapter")
    return folder


def write_tiny_checkpoint(folder: Path | str, seed: int = 0) -> Path:
    """Write the checkpoint: SD's components, a CLIPModel in ``clip/``, and ``adapter/``."""
    from fusionlib.adapter import FusionAdapter

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = write_tiny_tokenizer(folder / "tokenizer")
        tower = {
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": WIDTH,
        }
        text = {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        vision = {"image_size": RESOLUTION, "patch_size": 8}
        clip = CLIPModel(
            CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=WIDTH)
        ).eval()
        text_encoder = CLIPTextModel(clip.config.text_config).eval()
        text_encoder.load_state_dict(clip.text_model.state_dict())
        vae = tiny_vae()
        unet = tiny_unet()
        adapter = FusionAdapter.from_unet(unet, init="random")
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    clip.save_pretrained(folder / "clip")
    square = {"height": RESOLUTION, "width": RESOLUTION}
    images = CLIPImageProcessorPil(size={"shortest_edge": RESOLUTION}, crop_size=square)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder / "clip")
    adapter.save_pretrained(folder / "adapter")
    return folder
