"""The reference stream: h_f is what enters attn2, and the cache keeps what is made of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    IPNDMScheduler,
    UNet2DConditionModel,
)

from fusionlib import FusionAdapter, FusionError, ReferenceCache, encode_references
from tests.helpers.tiny import tiny_unet

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
    with pytest.raises(FusionError, match="must be the same for all references with EulerDiscrete"):
        encode_references(
            unet,
            torch.cat([LATENTS, LATENTS])[:2],
            EMPTY_PROMPT[:1],
            timestep_mode="shared",
            timestep=scheduler.timesteps[:2],
            noise=torch.ones_like(torch.cat([LATENTS, LATENTS])[:2]),
            scheduler=scheduler,
        )


def test_a_batch_is_each_image_alone(unet: UNet2DConditionModel) -> None:
    together = encode_references(unet, LATENTS, EMPTY_PROMPT)
    alone = encode_references(unet, LATENTS[1:], EMPTY_PROMPT)
    for name in together:
        torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-4, atol=1e-5)


def test_no_hook_is_left_behind(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an error in the middle of the UNet")

    encode_references(unet, LATENTS, EMPTY_PROMPT)
    monkeypatch.setattr(unet.mid_block.attentions[0].proj_in, "forward", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        encode_references(unet, LATENTS, EMPTY_PROMPT)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_not_while_conditioned(unet: UNet2DConditionModel) -> None:
    adapter, later = FusionAdapter.from_unet(unet), FusionAdapter.from_unet(unet)
    adapter.attach(unet)
    later.attach(unet)  # wraps the first one's processors
    reference = adapter.project(encode_references(unet, LATENTS, EMPTY_PROMPT))
    with adapter.conditioned([reference]), pytest.raises(FusionError, match="conditioned on faces"):
        encode_references(unet, LATENTS, EMPTY_PROMPT)
    adapter.detach(unet)
    later.detach(unet)


def test_sdxl_also_takes_text_embeds_and_time_ids() -> None:
    torch.manual_seed(0)
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    added = {"text_embeds": torch.ones(1, 16), "time_ids": torch.ones(1, 6)}
    both = encode_references(unet, LATENTS, EMPTY_PROMPT, added_cond_kwargs=added)
    each = {name: tensor.expand(2, -1) for name, tensor in added.items()}
    seen = []
    hook = (
        unet.mid_block.attentions[0]
        .transformer_blocks[0]
        .norm2.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    )
    with torch.no_grad():
        text = EMPTY_PROMPT.expand(2, -1, -1)
        unet(LATENTS, 0, encoder_hidden_states=text, added_cond_kwargs=each)
    hook.remove()
    middle = "mid_block.attentions.0.transformer_blocks.0.attn2"
    torch.testing.assert_close(both[middle], seen[0])
    with pytest.raises(FusionError, match="added_cond_kwargs must hold text_embeds and time_ids"):
        encode_references(unet, LATENTS, EMPTY_PROMPT)
    for wrong in (torch.ones(3, 16), torch.ones(1)):
        with pytest.raises(FusionError, match=r"added_cond_kwargs\['text_embeds'\] must be"):
            encode_references(
                unet, LATENTS, EMPTY_PROMPT, added_cond_kwargs=added | {"text_embeds": wrong}
            )


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


def test_caches_of_several_people_are_joined() -> None:
    ada, ben = cache(2), cache(1, offset=10.0)
    group = ReferenceCache.join([ada, ben])
    assert [each["layer"][0][0, 0, 0].item() for each in group] == [0, 1, 10]
    assert repr(group) == "ReferenceCache(3 references, batch_size=1, 1 layers)"
    assert repr(ReferenceCache(())) == "ReferenceCache(0 references, batch_size=1, 0 layers)"
    made = [replace(ada, fingerprint=torch.full((1, 8), float(n))) for n in range(1, 3)]
    with pytest.raises(FusionError, match=r"caches\[1\] was made by another adapter"):
        ReferenceCache.join(made)
    made = [replace(ada, unet_fingerprint=torch.full((1, 8), float(n))) for n in range(1, 3)]
    with pytest.raises(FusionError, match=r"caches\[1\] was made by other weights of the unet"):
        ReferenceCache.join(made)
    with pytest.raises(FusionError, match="one cache at least"):
        ReferenceCache.join([])


def test_a_scheduler_that_adds_no_noise_is_named(unet: UNet2DConditionModel) -> None:
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 16)
    with pytest.raises(FusionError, match="IPNDMScheduler does not"):
        encode_references(
            unet,
            latents,
            text,
            timestep_mode="shared",
            timestep=1,
            noise=latents,
            scheduler=IPNDMScheduler(),
        )


def test_cache_for_a_batch_of_prompts() -> None:
    both = ReferenceCache.stack([cache(2), cache(2, offset=10.0)])
    assert len(both) == 2 and both.batch_size == 2
    assert both[1]["layer"][0][:, 0, 0].tolist() == [1, 11]
    assert both.repeat_interleave(2)[0]["layer"][0][:, 0, 0].tolist() == [0, 0, 10, 10]
    with pytest.raises(FusionError, match="equally many"):
        ReferenceCache.stack([cache(1), cache(2)])
    mixed = ReferenceCache((both[0], cache(1)[0]))  # one for each image, and one for all
    repeated = mixed.repeat_interleave(2)
    assert [r["layer"][0].shape[0] for r in repeated] == [4, 1]
    assert mixed.batch_size == 2 and repeated.batch_size == 4


@pytest.fixture
def adapter(unet: UNet2DConditionModel) -> Iterator[FusionAdapter]:
    torch.manual_seed(5)
    adapter = FusionAdapter.from_unet(unet, init="random")
    adapter.attach(unet)
    yield adapter
    adapter.detach(unet)


@torch.no_grad()
def run(unet: UNet2DConditionModel, timestep: int = 10, seed: int = 4) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 4, 8, 8, generator=noise)
    prompt = torch.randn(2, 16, 16, generator=noise)
    return unet(sample, timestep, encoder_hidden_states=prompt).sample


def test_a_cache_is_what_project_gives(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    hidden_states = encode_references(unet, LATENTS, EMPTY_PROMPT)
    cached, projected = adapter.cache(hidden_states), adapter.project(hidden_states)
    assert len(cached) == 2 and cached.batch_size == 1
    for name, (key, value) in projected.items():
        for index in range(2):
            assert torch.equal(cached[index][name][0], key[index : index + 1])
            assert torch.equal(cached[index][name][1], value[index : index + 1])
            assert not cached[index][name][0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_cache_is_the_same_cache(
    unet: UNet2DConditionModel, adapter: FusionAdapter, tmp_path: Path, dtype: torch.dtype
) -> None:
    cached = adapter.cache(encode_references(unet, LATENTS, EMPTY_PROMPT)).to(dtype=dtype)
    twice = ReferenceCache((*cached, cached[0]), cached.fingerprint)  # shares memory
    path = tmp_path / "new" / "faces.safetensors"
    twice.save(path)
    loaded = ReferenceCache.load(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"
    assert len(loaded) == 3 and loaded.fingerprint is not None
    for before, after in zip(twice, loaded, strict=True):
        assert before.keys() == after.keys()
        for name, (key, value) in before.items():
            assert after[name][0].dtype == dtype
            assert torch.equal(after[name][0], key) and torch.equal(after[name][1], value)
    with adapter.conditioned(twice):
        expected = run(unet)
    with adapter.conditioned(loaded):
        assert torch.equal(run(unet), expected)
    ReferenceCache(()).save(path)
    assert len(ReferenceCache.load(path)) == 0


def test_a_failing_write_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "faces.safetensors"
    cache(2).save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FusionError, match="path .* cannot be written .No space left"):
        cache(3).save(path)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == [path.name]


def test_a_cache_knows_the_adapter_that_made_it(
    unet: UNet2DConditionModel, adapter: FusionAdapter, tmp_path: Path
) -> None:
    adapter.cache(encode_references(unet, LATENTS, EMPTY_PROMPT)).save(tmp_path / "faces")
    cached = ReferenceCache.load(tmp_path / "faces")
    other = FusionAdapter.from_unet(unet, init="random")
    other.attach(unet)
    stacked = ReferenceCache.stack([cached, cached])
    for made_elsewhere in (cached, cached[:1], cached.to(dtype=torch.float16), stacked):
        made_by = pytest.raises(FusionError, match="references were made by another adapter")
        with made_by, other.conditioned(made_elsewhere):
            pass
    with pytest.raises(FusionError, match=r"caches\[1\] was made by another adapter"):
        own = other.cache(encode_references(unet, LATENTS, EMPTY_PROMPT))
        ReferenceCache.stack([cached, own])
    other.detach(unet)

    adapter.save_pretrained(tmp_path / "adapter")  # the same weights, loaded at half precision
    for dtype in (torch.float16, torch.bfloat16):
        again = FusionAdapter.from_pretrained(tmp_path / "adapter", dtype=dtype)
        again.attach(unet)
        with again.conditioned(cached):
            pass
        again.detach(unet)

    wider = tiny_unet(block_out_channels=(16, 64))
    misfit = FusionAdapter.from_unet(wider)
    misfit.attach(wider)
    unknown = ReferenceCache(cached.references)  # a cache of unknown origin still has its shapes
    with (
        pytest.raises(
            FusionError, match=r"references\[0\].*encode the reference with this adapter"
        ),
        misfit.conditioned(unknown),
    ):
        pass


def test_one_cache_for_steps_prompts_batches_and_unets(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    cached = adapter.cache(encode_references(unet, LATENTS, EMPTY_PROMPT))
    kept = {name: (key.clone(), value.clone()) for name, (key, value) in cached[1].items()}
    twin = tiny_unet()
    twin.load_state_dict(unet.state_dict())
    theirs = FusionAdapter.from_unet(twin)
    theirs.load_state_dict(adapter.state_dict())
    theirs.attach(twin)
    for timestep, seed in ((900, 1), (500, 1), (10, 2)):
        fresh = adapter.cache(encode_references(unet, LATENTS, EMPTY_PROMPT))
        with adapter.conditioned(fresh, strengths=[1, 0.5]):
            expected = run(unet, timestep, seed)
        with adapter.conditioned(cached, strengths=[1, 0.5]):
            assert torch.equal(run(unet, timestep, seed), expected)
        with theirs.conditioned(cached, strengths=[1, 0.5]):
            assert torch.equal(run(twin, timestep, seed), expected)
    for name, (key, value) in kept.items():
        assert torch.equal(cached[1][name][0], key) and torch.equal(cached[1][name][1], value)


@torch.no_grad()
def test_clean_references_are_the_same_at_every_step_of_sampling(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    """Encoded once, or again at each of the steps: the same latents at the end, bit for bit."""

    def sample(encode_again: bool) -> torch.Tensor:
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(4)
        cached = adapter.cache(encode_references(unet, LATENTS, EMPTY_PROMPT))
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
        prompt = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(8))
        for timestep in scheduler.timesteps:
            if encode_again:
                cached = adapter.cache(encode_references(unet, LATENTS, EMPTY_PROMPT))
            with adapter.conditioned(cached):
                noise = unet(latents, timestep, encoder_hidden_states=prompt).sample
            latents = scheduler.step(noise, timestep, latents).prev_sample
        return latents

    assert torch.equal(sample(encode_again=False), sample(encode_again=True))
