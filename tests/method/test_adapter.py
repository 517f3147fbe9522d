"""The adapter: in and out of a UNet without a trace, and the only thing that trains."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from torch import Tensor

from fusionlib import (
    FusedAttnProcessor,
    FusionAdapter,
    FusionError,
    FusionPipeline,
    encode_references,
    group_queries,
)
from fusionlib.kernels import grouped
from fusionlib.unet_layers import cross_attention_layers
from tests.helpers.tiny import tiny_unet

FIRST = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SAMPLE, PROMPT = noise(2, 4, 8, 8, seed=1), noise(2, 16, 16, seed=2)
FACES, EMPTY_PROMPT = noise(2, 4, 8, 8, seed=3), noise(1, 16, 16, seed=4)
ONE_LEVEL = {
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (16,),
}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet().requires_grad_(False)


@pytest.fixture
def adapter(unet: UNet2DConditionModel) -> FusionAdapter:
    adapter = FusionAdapter.from_unet(unet)
    adapter.attach(unet)
    return adapter


def run(unet: UNet2DConditionModel, sample: Tensor = SAMPLE, prompt: Tensor = PROMPT) -> Tensor:
    return unet(sample, 10, encoder_hidden_states=prompt).sample


def reference(adapter: FusionAdapter, index: int | slice = slice(0, 1)) -> dict:
    return adapter.project(encode_references(adapter.unet, FACES[index], EMPTY_PROMPT))


def shown(adapter: FusionAdapter, **options: object) -> Tensor:
    with adapter.conditioned([reference(adapter)], **options):
        return run(adapter.unet)


def processors(unet: UNet2DConditionModel) -> dict[str, object]:
    return dict(unet.attn_processors)


def test_names_map_one_to_one_to_the_unet(unet: UNet2DConditionModel) -> None:
    adapter = FusionAdapter.from_unet(unet)
    layers = cross_attention_layers(unet)
    wanted = {f"{name}.{weight}.weight" for name in layers for weight in ("to_k_f", "to_v_f")}
    assert set(adapter.state_dict()) == wanted
    for name, layer in layers.items():
        assert adapter.get_submodule(name).to_k_f.weight.shape == (layer.inner_dim, layer.query_dim)


def test_initial_values(unet: UNet2DConditionModel) -> None:
    self_attention = unet.get_submodule(FIRST.replace("attn2", "attn1"))
    copied = FusionAdapter.from_unet(unet, init="self_attention").get_submodule(FIRST)
    assert torch.equal(copied.to_k_f.weight, self_attention.to_k.weight)
    assert torch.equal(copied.to_v_f.weight, self_attention.to_v.weight)
    zero = FusionAdapter.from_unet(unet, init="zero_value").get_submodule(FIRST)
    assert torch.equal(zero.to_k_f.weight, self_attention.to_k.weight)
    assert not zero.to_v_f.weight.any()
    random = FusionAdapter.from_unet(unet, init="random").get_submodule(FIRST)
    assert not torch.equal(random.to_k_f.weight, self_attention.to_k.weight)
    copied.to_k_f.weight.data.zero_()
    assert self_attention.to_k.weight.any(), "the adapter shares memory with the UNet"


def test_zero_values_are_not_neutral(unet: UNet2DConditionModel) -> None:
    adapter = FusionAdapter.from_unet(unet, init="zero_value")
    adapter.attach(unet)
    with adapter.conditioned([reference(adapter)]):
        assert not torch.allclose(run(unet), run_base(unet), atol=1e-4)


def run_base(unet: UNet2DConditionModel) -> Tensor:
    """The base model, through a copy that never saw an adapter."""
    plain = UNet2DConditionModel.from_config(unet.config).eval()
    plain.load_state_dict(unet.state_dict())
    return run(plain)


def test_attach_and_detach_leave_the_unet_as_it_was(unet: UNet2DConditionModel) -> None:
    expected, former = run(unet), processors(unet)
    weights = copy.deepcopy(unet.state_dict())
    adapter = FusionAdapter.from_unet(unet)
    adapter.attach(unet)
    assert torch.equal(run(unet), expected)
    with adapter.conditioned([reference(adapter)]):
        changed = {n for n, processor in processors(unet).items() if processor is not former[n]}
        assert changed == {f"{name}.processor" for name in cross_attention_layers(unet)}
        assert not torch.allclose(run(unet), expected, atol=1e-3)
    assert torch.equal(run(unet), expected)
    adapter.detach(unet)
    assert processors(unet) == former and adapter.unet is None
    assert torch.equal(run(unet), expected)
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    adapter.attach(unet)  # and again


def test_strength_zero_or_no_reference_is_the_base_model(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    expected = run_base(unet)
    face = reference(adapter)
    with adapter.conditioned([face, face], strengths=[0, 0.0]):
        assert torch.equal(run(unet), expected)
    with adapter.conditioned([]):
        assert torch.equal(run(unet), expected)
    with pytest.raises(KeyError), adapter.conditioned([face]):
        raise KeyError("an error in the block")
    assert torch.equal(run(unet), expected)


def test_one_layer_is_equations_1_to_6(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    """A layer's output from its inputs and weights, without the processor or SDPA."""
    layer = unet.get_submodule(FIRST)
    hidden, text = noise(2, 64, 16, seed=5), noise(2, 16, 16, seed=6)
    h_f = encode_references(unet, FACES, EMPTY_PROMPT)
    with adapter.conditioned([adapter.project(h_f)]):
        actual = layer(hidden, encoder_hidden_states=text)
    weights = adapter.get_submodule(FIRST)
    keys = torch.cat([text @ layer.to_k.weight.T, h_f[FIRST] @ weights.to_k_f.weight.T], 1)
    values = torch.cat([text @ layer.to_v.weight.T, h_f[FIRST] @ weights.to_v_f.weight.T], 1)
    queries, keys, values = (
        x.reshape(2, -1, 2, 8) for x in (hidden @ layer.to_q.weight.T, keys, values)
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * 8**-0.5
    fused = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values).reshape(2, -1, 16)
    torch.testing.assert_close(actual, layer.to_out[0](fused), rtol=1e-5, atol=1e-6)


def test_order_and_duplicates(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    one, two = reference(adapter, slice(0, 1)), reference(adapter, slice(1, 2))
    outputs = []
    for references, strengths in (
        ([one, two], None),
        ([two, one], None),
        ([one, two, one], [0.5, 1.0, 0.5]),
    ):
        with adapter.conditioned(references, strengths=strengths):
            outputs.append(run(unet))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-4, atol=1e-5)


def test_each_sample_has_its_own_reference_and_strength(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    strengths = [torch.tensor([1.0, 0.0])]
    with adapter.conditioned([reference(adapter, slice(0, 2))], strengths=strengths):
        batch = run(unet)
    with adapter.conditioned([reference(adapter, slice(0, 1))]):
        alone = run(unet, SAMPLE[:1], PROMPT[:1])
    torch.testing.assert_close(batch[:1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch[1:], run(unet)[1:], rtol=1e-4, atol=1e-5)


def test_the_unconditional_branch_sees_no_face(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    face = reference(adapter)
    with adapter.conditioned([face], batch_size=1):
        branches = run(unet)
        later = run(unet, SAMPLE[1:], PROMPT[1:])  # guidance may end before sampling does
    with adapter.conditioned([face]):
        conditional = run(unet)
    with adapter.conditioned([face], batch_size=3):  # more than there are
        torch.testing.assert_close(run(unet), conditional)
    torch.testing.assert_close(branches[:1], run_base(unet)[:1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(branches[1:], conditional[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(later, conditional[1:], rtol=1e-4, atol=1e-5)


def test_identity_masks(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    one, two = reference(adapter, slice(0, 1)), reference(adapter, slice(1, 2))
    everywhere = torch.ones(1, 32, 32, dtype=torch.bool)
    with adapter.conditioned([one]):
        expected = run(unet)
    with adapter.conditioned([one], identity_masks=everywhere):
        torch.testing.assert_close(run(unet), expected, rtol=1e-4, atol=1e-5)
    hidden, text = noise(1, 64, 16, seed=5), noise(1, 16, 16, seed=6)
    layer = unet.get_submodule(FIRST)
    left = torch.zeros(2, 8, 8, dtype=torch.bool)
    left[0, :, :4], left[1, :, 4:] = True, True
    with adapter.conditioned([two, one], identity_masks=left, reference_identity=[1, 0]):
        apart = layer(hidden, encoder_hidden_states=text).unflatten(1, (8, 8))
    for half, face in ((slice(0, 4), one), (slice(4, 8), two)):
        with adapter.conditioned([face]):
            alone = layer(hidden, encoder_hidden_states=text).unflatten(1, (8, 8))
        torch.testing.assert_close(apart[:, :, half], alone[:, :, half], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_reference_of_strength_zero_is_as_if_it_were_not_given(
    unet: UNet2DConditionModel, adapter: FusionAdapter, masked: bool
) -> None:
    faces = [reference(adapter, slice(i, i + 1)) for i in (0, 1)]
    all_of_them, the_second = {}, {}
    if masked:
        masks = torch.zeros(2, 8, 8, dtype=torch.bool)
        masks[0, :, :4], masks[1, :, 4:] = True, True
        all_of_them = {"identity_masks": masks}
        the_second = all_of_them | {"reference_identity": [1]}
    with adapter.conditioned(faces[1:], strengths=[0.5], **the_second):
        expected = run(unet)
    assert not torch.allclose(expected, run_base(unet), atol=1e-3)
    with adapter.conditioned(faces, strengths=[0, 0.5], **all_of_them):
        torch.testing.assert_close(run(unet), expected, rtol=1e-4, atol=1e-5)


def test_blocks_within_a_block(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    outer, inner = [reference(adapter)], [reference(adapter, slice(1, 2))]
    with adapter.conditioned(outer):
        expected = run(unet)
        with adapter.conditioned(inner):
            assert not torch.allclose(run(unet), expected, atol=1e-4)
        assert torch.equal(run(unet), expected)


def test_a_layer_keeps_its_own_dropout_and_factor(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    layer, hidden = unet.get_submodule(FIRST), noise(1, 64, 16, seed=5)
    with adapter.conditioned([reference(adapter)]):
        plain = layer(hidden, encoder_hidden_states=PROMPT[:1])
        layer.to_out[1], layer.rescale_output_factor = torch.nn.PReLU(init=3.0), 4.0
        changed = layer(hidden, encoder_hidden_states=PROMPT[:1])
    torch.testing.assert_close(changed, torch.where(plain > 0, plain, 3 * plain) / 4)


def test_only_the_adapter_gets_gradients(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    face = adapter.project(encode_references(unet, FACES, EMPTY_PROMPT))
    with adapter.conditioned([face], strengths=[torch.tensor([1.0, 0.0])]):
        run(unet).square().mean().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_a_dropped_reference_gives_no_gradient(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    face = adapter.project(encode_references(unet, FACES, EMPTY_PROMPT))
    with adapter.conditioned([face], strengths=[torch.zeros(2)]):
        run(unet).square().mean().backward()
    assert not any(parameter.grad.any() for parameter in adapter.parameters())


def test_autocast_to_bfloat16(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    with adapter.conditioned([reference(adapter)], strengths=[0.7]):
        expected = run(unet)
    with torch.autocast("cpu", torch.bfloat16):
        face = reference(adapter)
        with adapter.conditioned([face], strengths=[0.7]):
            actual = run(unet)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.05)


def test_a_compiled_unet_is_not_compiled_again_for_new_references() -> None:
    """One graph serves each training step's fresh keys, values and strengths (backend: eager)."""
    unet = tiny_unet(**ONE_LEVEL)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    in_place = copy.deepcopy(unet)
    in_place.compile(backend=backend)
    masks = torch.ones(1, 8, 8, dtype=torch.bool)
    for compiled, options in (
        (torch.compile(unet, backend=backend), {}),
        (in_place, {"identity_masks": masks, "reference_identity": [0, 0]}),
    ):
        adapter = FusionAdapter.from_unet(compiled)
        adapter.attach(compiled)
        graphs.clear()
        for step in range(3):
            face = adapter.project(encode_references(compiled, FACES + step, EMPTY_PROMPT))
            strengths = [torch.tensor([1.0, step / 2]), 0.5 + step]
            with adapter.conditioned([face, face], strengths=strengths, **options):
                actual = run(compiled)
                with torch.compiler.set_stance("force_eager"):
                    torch.testing.assert_close(actual, run(compiled), rtol=1e-4, atol=1e-5)
            actual.sum().backward()
        assert len(graphs) == 1
        adapter.detach(compiled)


@torch.no_grad()
def test_a_compiled_unet_is_compiled_once_for_all_steps() -> None:
    """It keeps nothing of a text from one step for the next, of which it would be another graph."""
    unet = tiny_unet(**ONE_LEVEL)
    graphs = []
    compiled = torch.compile(unet, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    adapter = FusionAdapter.from_unet(compiled)
    adapter.attach(compiled)
    with adapter.conditioned([reference(adapter)], same_text=True):
        outputs = [run(compiled) for _ in range(3)]
    assert len(graphs) == 1 and torch.equal(outputs[0], outputs[2])


def test_save_and_load(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    adapter = FusionAdapter.from_unet(unet, init="random")
    adapter.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert json.loads((tmp_path / "config.json").read_text())["layers"][FIRST] == [16, 16]
    loaded = FusionAdapter.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == adapter.state_dict().keys()
    for name, value in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    loaded.attach(unet)
    again, found = FusionAdapter.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(again, FusionAdapter) and not found["missing_keys"]


def test_two_adapters_on_one_unet(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    before = processors(unet)

    expected = shown(adapter)
    other = FusionAdapter.from_unet(unet, init="random")
    other.attach(unet)
    assert torch.equal(shown(adapter), expected)
    different = shown(other)
    assert not torch.allclose(different, expected, atol=1e-4)
    adapter.detach(unet)  # the one that was attached first
    assert torch.equal(shown(other), different)
    assert processors(unet) == before


def test_a_unet_has_its_own_processors_outside_of_the_block(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    """So that every switch of diffusers finds what it looks for."""
    before = processors(unet)
    with adapter.conditioned([reference(adapter)]):
        assert isinstance(unet.get_submodule(FIRST).processor, FusedAttnProcessor)
    assert processors(unet) == before
    with pytest.raises(ZeroDivisionError), adapter.conditioned([reference(adapter)]):
        1 / 0  # noqa: B018
    assert processors(unet) == before
    unet.set_default_attn_processor()


def test_blocks_within_blocks(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    base, before = run(unet), processors(unet)
    one, two = (reference(adapter, slice(i, i + 1)) for i in (0, 1))
    with adapter.conditioned([two]):
        alone = run(unet)
    with adapter.conditioned([one]):
        outer = run(unet)
        with adapter.conditioned([two]):  # in place of the first, not beside it
            assert torch.equal(run(unet), alone)
            with adapter.conditioned([two], strengths=[0]):
                assert torch.equal(run(unet), base)
        assert torch.equal(run(unet), outer)
    assert processors(unet) == before


def test_processors_replaced_by_somebody_else(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    face, expected = reference(adapter), shown(adapter)
    unet.set_attn_processor(AttnProcessor())
    with adapter.conditioned([face]):
        torch.testing.assert_close(run(unet), expected)
        unet.set_attn_processor(AttnProcessor2_0())  # as a callback may
    assert all(type(each) is AttnProcessor2_0 for each in processors(unet).values())


def test_a_processor_of_ones_own_steps_aside_with_a_warning(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    class Doubled(AttnProcessor2_0):
        def __call__(self, *args: object, **kwargs: object) -> Tensor:
            return 2 * super().__call__(*args, **kwargs)

    face, expected = reference(adapter), shown(adapter)
    unet.get_submodule(FIRST).set_processor(Doubled())
    doubled = run(unet)
    with pytest.warns(UserWarning, match="Doubled"), adapter.conditioned([face]):
        assert torch.equal(run(unet), expected)
    assert torch.equal(run(unet), doubled)


def test_misfits(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    wider = tiny_unet(block_out_channels=(16, 64))
    deeper = tiny_unet(layers_per_block=2)
    loose = FusionAdapter.from_unet(unet)
    with pytest.raises(FusionError, match=r"does not fit .*\(32, 32\).*\(64, 64\)"):
        loose.attach(wider)
    with pytest.raises(FusionError, match="does not fit .*missing"):
        loose.attach(deeper)
    with pytest.raises(FusionError, match="no cross-attention"):
        FusionAdapter.from_unet(
            UNet2DModel(
                sample_size=8,
                block_out_channels=(16,),
                norm_num_groups=4,
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
            )
        )
    with pytest.raises(FusionError, match="attached to another unet"):
        adapter.attach(wider)
    with pytest.raises(FusionError, match="not attached"):
        adapter.detach(wider)
    with pytest.raises(FusionError, match="not attached"), loose.conditioned([]):
        pass
    with pytest.raises(FusionError, match="init"):
        FusionAdapter.from_unet(unet, init="ones")


def test_only_cross_attention_is_attached_to() -> None:
    """The temporal blocks of video UNets have a second self-attention of the same name."""
    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=16)
    temporal = BasicTransformerBlock(16, 2, 8, double_self_attention=True)
    both = torch.nn.ModuleDict({"spatial": block, "temporal": temporal})
    assert list(cross_attention_layers(both)) == ["spatial.attn2"]


def test_self_attention_that_cannot_be_copied_is_named() -> None:
    crossed, bare = tiny_unet(only_cross_attention=True, cross_attention_dim=24), tiny_unet()
    del bare.get_submodule(FIRST.removesuffix(".attn2")).attn1
    for unet in (crossed, bare):
        with pytest.raises(FusionError, match=r"needs a self-attention beside .* in unet"):
            FusionAdapter.from_unet(unet)
        assert FusionAdapter.from_unet(unet, init="random").config["layers"][FIRST] == (16, 16)


def test_an_adapter_is_in_float32_and_unknown_while_it_is_offloaded() -> None:
    adapter = FusionAdapter.from_unet(tiny_unet().to(torch.bfloat16))
    assert adapter.dtype == torch.float32 and adapter.fingerprint() is not None
    assert adapter.to("meta").fingerprint() is None


def test_errors_name_the_argument(adapter: FusionAdapter) -> None:
    face = reference(adapter)
    short = {name: face[name] for name in list(face)[1:]}
    masks = torch.ones(1, 32, 32, dtype=torch.bool)
    for arguments, named in (
        ({"references": [face, short]}, r"references\[1\]"),
        ({"references": [face], "strengths": [1, 1]}, "strengths"),
        ({"references": [face], "strengths": [-1]}, r"strengths\[0\]"),
        (
            {"references": [face], "strengths": [torch.ones(3)], "batch_size": 2},
            r"strengths\[0\]",
        ),
        (
            {"references": [face, reference(adapter, slice(0, 2))], "batch_size": 3},
            r"references\[1\] must serve 1 or batch_size=3",
        ),
        ({"references": [face], "reference_identity": [0]}, "identity_masks"),
        ({"references": [face] * 2, "identity_masks": masks}, r"reference_identity\[1\]"),
        ({"references": [face], "identity_masks": masks.float()}, "masks must be boolean"),
    ):
        with pytest.raises(FusionError, match=named), adapter.conditioned(**arguments):
            pass
    with pytest.raises(FusionError, match="hidden_states"):
        adapter.project({FIRST: torch.zeros(1, 64, 16)})
    layer = adapter.unet.get_submodule(FIRST)
    for text in (
        {"encoder_hidden_states": PROMPT[:1], "attention_mask": torch.zeros(1, 1, 16)},
        {"encoder_hidden_states": (PROMPT[:1], [PROMPT[:1]])},  # as with an IP-Adapter
    ):
        with (
            pytest.raises(FusionError, match="text and an IP-Adapter's image only"),
            adapter.conditioned([face]),
        ):
            layer(noise(1, 64, 16, seed=5), **text)
    odd = torch.ones(1, 31, 31, dtype=torch.bool)
    with (
        pytest.raises(FusionError, match="identity_masks do not fit"),
        adapter.conditioned([face], identity_masks=odd[:, :20]),
    ):
        run(adapter.unet)


def test_all_backends_are_one_unet(
    unet: UNet2DConditionModel, adapter: FusionAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overlap, inside and background, for both branches of guidance."""
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 4:20, 2:18], masks[1, 8:24, 14:30] = True, True
    faces = [reference(adapter, slice(i, i + 1)) for i in (0, 1)]
    outputs, calls = {}, []
    monkeypatch.setattr(
        "fusionlib.kernels.grouped", lambda *given: calls.append(backend) or grouped(*given)
    )
    for backend in ("dense", "grouped", None):
        options = {"strengths": [0.5, 1.5], "identity_masks": masks, "backend": backend}
        with torch.no_grad(), adapter.conditioned(faces, batch_size=1, **options):
            outputs[backend] = run(unet)
    torch.testing.assert_close(outputs["grouped"], outputs["dense"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[None], outputs["dense"], rtol=1e-4, atol=1e-5)
    assert calls == ["grouped"] * len(cross_attention_layers(unet))  # of themselves, all are dense
    with pytest.raises(FusionError, match="backend"), adapter.conditioned(faces, backend="fast"):
        pass


def projected(unet: UNet2DConditionModel) -> list[str]:
    """A list that grows by a layer's name whenever it projects a text."""
    found: list[str] = []

    def counted(name: str, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda text: found.append(name) or forward(text)

    for name, layer in cross_attention_layers(unet).items():
        layer.to_k.forward = counted(name, layer.to_k.forward)  # a hook is a reason not to keep
    return found


@pytest.mark.parametrize("attention", ["concatenated", "decoupled"])
@pytest.mark.parametrize("backend", ["no masks", "dense", "grouped"])
def test_a_text_that_stays_the_same_is_projected_once(
    unet: UNet2DConditionModel, attention: str, backend: str
) -> None:
    """The numbers are those of a UNet that projects it at each step, bit for bit."""
    adapter = FusionAdapter.from_unet(unet, attention=attention)
    adapter.attach(unet)
    faces = [reference(adapter, slice(i, i + 1)) for i in (0, 1)]
    options = {"strengths": [0.5, torch.tensor([1.5])], "batch_size": 1}
    if backend != "no masks":
        masks = torch.zeros(2, 32, 32, dtype=torch.bool)
        masks[0, 4:20, 2:18], masks[1, 8:24, 14:30] = True, True
        options |= {"identity_masks": masks, "backend": backend}
    other = noise(2, 16, 16, seed=8)
    steps = [(SAMPLE, PROMPT), (-SAMPLE, PROMPT), (SAMPLE, other), (SAMPLE[:1], PROMPT[:1])]
    layers = list(cross_attention_layers(unet))

    with torch.no_grad():
        with adapter.conditioned(faces, **options):
            expected = [run(unet, *step) for step in steps]
        found = projected(unet)
        with adapter.conditioned(faces, **options, same_text=True):
            for number, (step, wanted) in enumerate(zip(steps, expected, strict=True)):
                assert torch.equal(run(unet, *step), wanted), number
            # Not for the second step: its text is the first one's.
            assert sorted(found) == sorted(3 * layers)
        found.clear()
        with adapter.conditioned(faces[:1], same_text=True):
            assert not torch.equal(run(unet), expected[0]), "what is kept ends with the block"
        assert sorted(found) == sorted(layers)


def test_a_text_is_projected_again_where_it_has_to_be(
    unet: UNet2DConditionModel, adapter: FusionAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another precision, where somebody listens, and where it would take too much memory."""
    found, layers = projected(unet), len(cross_attention_layers(unet))

    def calls(number: int, *, autocast: bool = False) -> int:
        found.clear()
        for _ in range(number):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                run(unet)
        return len(found)

    with torch.no_grad():
        face = reference(adapter)
        with adapter.conditioned([face], same_text=True):
            assert calls(2) == layers
            assert calls(2, autocast=True) == layers, "keys of one type, queries of another"
            assert calls(2) == layers
            listened = unet.get_submodule(FIRST)
            for register in (
                listened.to_v.register_forward_hook,
                listened.to_v.register_forward_pre_hook,
                listened.to_k.register_forward_hook,
                listened.to_k.register_forward_pre_hook,
            ):
                hook = register(lambda *_: None)
                assert calls(3) == 3, "of the layer that has a hook"
                hook.remove()
                assert calls(1) == 0
        kept = sum(t.numel() * t.element_size() for pair in face.values() for t in pair)
        monkeypatch.setattr("fusionlib.adapter.MAX_CACHED_BYTES", 2 * kept)
        for batch_size, projections in ((1, 1), (2, 1), (3, 2)):
            with adapter.conditioned([face], batch_size=batch_size, same_text=True):
                assert calls(2) == projections * layers, batch_size
        both = reference(adapter, slice(0, 2))  # one for each sample, twice as much
        with adapter.conditioned([both, face], same_text=True):
            assert calls(2) == 2 * layers


def test_what_is_kept_is_not_used_at_another_size(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 4:36], masks[1, 16:48, 28:60] = True, True
    larger = noise(2, 4, 16, 16, seed=9)
    outputs = {}
    with torch.no_grad():
        faces = [reference(adapter, slice(i, i + 1)) for i in (0, 1)]
        for same_text in (False, True):
            with adapter.conditioned(faces, identity_masks=masks, same_text=same_text):
                outputs[same_text] = [run(unet, sample) for sample in (SAMPLE, larger, SAMPLE)]
    assert all(map(torch.equal, outputs[True], outputs[False]))


def test_nothing_is_kept_where_gradients_are_taken(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    with torch.no_grad():
        face = reference(adapter)
    found = projected(unet)
    prompt = PROMPT.clone().requires_grad_()
    with adapter.conditioned([face], same_text=True):
        for _ in range(2):
            run(unet, prompt=prompt).sum().backward()  # a graph that was kept would be gone
    assert sorted(found) == sorted(2 * list(cross_attention_layers(unet)))
    assert prompt.grad.abs().sum() > 0


def test_groups_are_made_once_for_each_size(
    unet: UNet2DConditionModel, adapter: FusionAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(masks: Tensor, shown: list[int], size: tuple[int, int]) -> object:
        made.append(size)
        return group_queries(masks, shown, size)

    monkeypatch.setattr("fusionlib.adapter.group_queries", counted)
    masks = torch.ones(1, 8, 8, dtype=torch.bool)
    with adapter.conditioned([reference(adapter)], identity_masks=masks):
        run(unet)
        run(unet)
    assert made == [(8, 8), (4, 4), (2, 2), (1, 1)]


def test_known_latents_spare_the_other_sizes(
    unet: UNet2DConditionModel, adapter: FusionAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 4:36], masks[1, 16:48, 28:60] = True, True
    faces = [reference(adapter, slice(i, i + 1)) for i in (0, 1)]
    made = []

    def counted(masks: Tensor, shown: list[int], size: tuple[int, int]) -> object:
        made.append(size)
        return group_queries(masks, shown, size)

    with adapter.conditioned(faces, identity_masks=masks):
        expected = run(unet)
    monkeypatch.setattr("fusionlib.adapter.group_queries", counted)
    with adapter.conditioned(faces, identity_masks=masks, latent_size=(8, 8)):
        assert torch.equal(run(unet), expected)
    assert made == [(8, 8), (4, 4)]
    for wrong in ((8, 0), 8):
        with (
            pytest.raises(FusionError, match="size"),
            adapter.conditioned(faces, identity_masks=masks, latent_size=wrong),
        ):
            pass


def test_an_overlap_sees_the_text_only(unet: UNet2DConditionModel, adapter: FusionAdapter) -> None:
    masks = torch.ones(2, 8, 8, dtype=torch.bool)
    with adapter.conditioned([reference(adapter)] * 2, identity_masks=masks):
        torch.testing.assert_close(run(unet), run_base(unet), rtol=1e-5, atol=1e-6)


def test_two_adapters_do_not_show_faces_at_once(
    unet: UNet2DConditionModel, adapter: FusionAdapter
) -> None:
    other = FusionAdapter.from_unet(unet)
    other.attach(unet)
    face, theirs = [reference(adapter)], [reference(other)]
    for first, second, faces, others in (
        (adapter, other, face, theirs),
        (other, adapter, theirs, face),
    ):
        with (
            first.conditioned(faces),
            pytest.raises(FusionError, match="Another adapter is showing"),
            second.conditioned(others),
        ):
            pass
    assert torch.equal(run(unet), run_base(unet))


@pytest.mark.filterwarnings("ignore:The attention processor Weighted")
def test_a_processor_with_weights_is_given_back(unet: UNet2DConditionModel) -> None:
    class Weighted(AttnProcessor2_0, torch.nn.Module):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.ones(1))

    theirs = Weighted()
    unet.get_submodule(FIRST).set_processor(theirs)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    assert f"{FIRST}.processor.weight" in before
    for _ in range(2):
        adapter = FusionAdapter.from_unet(unet)
        adapter.attach(unet)
        with adapter.conditioned([reference(adapter)]):
            assert theirs in set(unet.modules()), "it moves with the unet"
        adapter.detach(unet)
    after = unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], before[n]) for n in before)
    assert unet.get_submodule(FIRST).processor is theirs


def test_two_pipelines_on_one_unet(tiny_checkpoint: Path) -> None:
    first = FusionPipeline.from_pretrained(tiny_checkpoint)
    torch.manual_seed(1)
    other = FusionAdapter.from_unet(first.unet, init="random")
    second = FusionPipeline(**{**first.components, "adapter": other})
    plain = StableDiffusionPipeline(
        **{name: part for name, part in first.components.items() if name != "adapter"},
        requires_safety_checker=False,
    )
    face = Image.effect_noise((32, 32), 90).convert("RGB")

    def image(pipeline: StableDiffusionPipeline, **options: object) -> bytes:
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            "a face",
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            **options,
        ).images.tobytes()

    base = image(plain)
    one, two = image(first, references=[face]), image(second, references=[face])
    assert len({base, one, two}) == 3
    for _ in range(2):
        assert image(second, references=[face]) == two and image(plain) == base
        assert image(first, references=[face]) == one and image(first) == image(second) == base
