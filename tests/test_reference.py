"""The reference stream: h_f is what enters attn2, and the cache keeps what is made of it."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from tiny import tiny_unet

from fusionlib import FusionAdapter, FusionError, ReferenceCache, encode_references

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
EMPTY_PROMPT = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet()


def outputs_of_norm2(unet: UNet2DConditionModel, latents: torch.Tensor, timestep: int) -> dict:
    """Another way to h_f: the output of each block's norm2."""
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: seen.update({name.replace("norm2", "attn2"): output})
        )
        for name, module in unet.named_modules()
        if "transformer_blocks" in name and name.endswith(".norm2")
    ]
    with torch.no_grad():
        unet(latents, timestep, encoder_hidden_states=EMPTY_PROMPT.expand(len(latents), -1, -1))
    for hook in hooks:
        hook.remove()
    return seen


def test_clean_mode_is_norm2_at_timestep_0(unet: UNet2DConditionModel) -> None:
    hidden_states = encode_references(unet, LATENTS, EMPTY_PROMPT)
    expected = outputs_of_norm2(unet, LATENTS, 0)
    assert len(hidden_states) == 7 and hidden_states.keys() == expected.keys()
    assert all(torch.equal(hidden_states[name], expected[name]) for name in expected)
    assert not any(h.requires_grad for h in hidden_states.values())
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert hidden_states[first].shape == (2, 64, 16)


def test_shared_mode_is_norm2_of_the_noised_image(unet: UNet2DConditionModel) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    scheduler = DDIMScheduler()
    hidden_states = encode_references(
        unet,
        LATENTS,
        EMPTY_PROMPT,
        timestep_mode="shared",
        timestep=400,
        noise=noise,
        scheduler=scheduler,
    )
    kept = scheduler.alphas_cumprod[400]
    noised = kept.sqrt() * LATENTS + (1 - kept).sqrt() * noise
    expected = outputs_of_norm2(unet, noised, 400)
    for name in expected:
        torch.testing.assert_close(hidden_states[name], expected[name])


def test_shared_mode_scales_the_input_as_the_scheduler_does(unet: UNet2DConditionModel) -> None:
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    timestep, sigma = scheduler.timesteps[3], scheduler.sigmas[3]
    hidden_states = encode_references(
        unet,
        LATENTS,
        EMPTY_PROMPT,
        timestep_mode="shared",
        timestep=timestep,
        noise=torch.ones_like(LATENTS),
        scheduler=scheduler,
    )
    expected = outputs_of_norm2(unet, (LATENTS + sigma) / (sigma**2 + 1).sqrt(), timestep)
    for name in expected:
        torch.testing.assert_close(hidden_states[name], expected[name])


def test_a_batch_is_each_image_alone(unet: UNet2DConditionModel) -> None:
    together = encode_references(unet, LATENTS, EMPTY_PROMPT)
    alone = encode_references(unet, LATENTS[1:], EMPTY_PROMPT)
    for name in together:
        torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-4, atol=1e-5)


def test_no_hook_is_left_behind(unet: UNet2DConditionModel) -> None:
    encode_references(unet, LATENTS, EMPTY_PROMPT)
    with pytest.raises(RuntimeError):
        encode_references(unet, LATENTS[:, :3], EMPTY_PROMPT)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_not_while_conditioned(unet: UNet2DConditionModel) -> None:
    adapter = FusionAdapter.from_unet(unet)
    adapter.attach(unet)
    reference = adapter.project(encode_references(unet, LATENTS, EMPTY_PROMPT))
    with adapter.conditioned([reference]), pytest.raises(FusionError, match="conditioned on faces"):
        encode_references(unet, LATENTS, EMPTY_PROMPT)
    adapter.detach(unet)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"timestep_mode": "noisy"}, "timestep_mode"),
        ({"timestep_mode": "shared"}, "needs timestep, noise and scheduler"),
        ({"timestep": 3}, "timestep and noise belong"),
        ({"encoder_hidden_states": EMPTY_PROMPT.expand(3, -1, -1)}, "encoder_hidden_states"),
    ],
)
def test_errors_name_the_argument(
    unet: UNet2DConditionModel, arguments: dict[str, object], named: str
) -> None:
    given = {"latents": LATENTS, "encoder_hidden_states": EMPTY_PROMPT} | arguments
    with pytest.raises(FusionError, match=named):
        encode_references(unet, **given)


def cache(references: int, batch: int = 1, offset: float = 0.0) -> ReferenceCache:
    keys = [torch.full((batch, 3, 2), i + offset) for i in range(references)]
    return ReferenceCache(tuple({"layer": (key, -key)} for key in keys))


def test_cache_is_a_sequence_of_references() -> None:
    three = cache(3)
    assert len(three) == 3 and len(three[1:]) == 2 and three.batch_size == 1
    assert isinstance(three[1:], ReferenceCache) and three[1:][0] is three[1]
    assert [reference["layer"][0][0, 0, 0].item() for reference in three] == [0, 1, 2]
    half = three.to(dtype=torch.bfloat16)
    assert half[2]["layer"][1].dtype == torch.bfloat16 and half[2]["layer"][1][0, 0, 0] == -2


def test_cache_for_a_batch_of_prompts() -> None:
    both = ReferenceCache.stack([cache(2), cache(2, offset=10.0)])
    assert len(both) == 2 and both.batch_size == 2
    assert both[1]["layer"][0][:, 0, 0].tolist() == [1, 11]
    assert both.repeat_interleave(2)[0]["layer"][0][:, 0, 0].tolist() == [0, 0, 10, 10]
    with pytest.raises(FusionError, match="equally many"):
        ReferenceCache.stack([cache(1), cache(2)])
