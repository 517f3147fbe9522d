"""Where the queries look, against a softmax written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from companion.evaluation.attention_maps import AttentionShares, record_attention
from fusionlib import FusionAdapter, encode_references, identity_attention_mask
from fusionlib.unet_layers import cross_attention_layers, split_heads
from tests.helpers.tiny import tiny_unet

TEXT, SIDE = 7, 8


@pytest.fixture(scope="module")
def scene() -> tuple[Any, FusionAdapter, list[Any], Tensor, Tensor]:
    """A UNet that sees two references, a noisy image and a prompt."""
    torch.manual_seed(0)
    unet = tiny_unet()
    adapter = FusionAdapter.from_unet(unet, init="random")
    adapter.attach(unet)
    latents, text = torch.randn(2, 4, SIDE, SIDE), torch.randn(1, TEXT, 16)
    seen = adapter.cache(encode_references(unet, latents, text))
    return unet, adapter, list(seen), torch.randn(1, 4, SIDE, SIDE), text


def looked(
    scene: Any, of: Any, **conditions: Any
) -> tuple[Tensor, list[AttentionShares], dict[str, Tensor]]:
    """What comes out, what was seen, and each layer's hidden state."""
    unet, adapter, faces, image, text = scene
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args: inputs.update({name: args[0]})

    handles = [
        layer.register_forward_pre_hook(keep(name))
        for name, layer in cross_attention_layers(unet).items()
    ]
    with (
        torch.no_grad(),
        adapter.conditioned(faces, **conditions),
        record_attention(unet, of) as gazes,
    ):
        out = unet(image, 10, text).sample
    for handle in handles:
        handle.remove()
    return out, gazes, inputs


def softmax(scene: Any, name: str, hidden: Tensor, bias: Tensor) -> Tensor:
    """The weights of a layer as the equations say, the mean over heads ``(N_q, keys)``."""
    unet, _, faces, _, text = scene
    layer = cross_attention_layers(unet)[name]
    query = split_heads(layer.to_q(hidden), layer.heads)
    keys = torch.cat([layer.to_k(text), *(face[name][0] for face in faces)], dim=1)
    logits = query @ split_heads(keys, layer.heads).transpose(2, 3) / query.shape[3] ** 0.5
    return (logits + bias).softmax(-1).mean(1)[0].detach()


def test_weights_of_every_key_are_those_of_the_softmax(scene: Any) -> None:
    _, gazes, inputs = looked(scene, "keys", strengths=[2.0, 0.5])
    assert {gaze.layer for gaze in gazes} == cross_attention_layers(scene[0]).keys()
    for gaze in gazes:
        text, first, second = gaze.tokens
        lambdas = torch.tensor([1.0] * text + [2.0] * first + [0.5] * second)
        expected = softmax(scene, gaze.layer, inputs[gaze.layer], lambdas.log())
        torch.testing.assert_close(gaze.weights[0], expected, atol=1e-5, rtol=1e-4)
        assert gaze.timestep == 10


def test_sources_are_the_sums_of_their_keys_and_the_image_is_not_changed(scene: Any) -> None:
    unet, adapter, faces, image, text = scene
    with torch.no_grad(), adapter.conditioned(faces):
        unwatched = unet(image, 10, text).sample
    out, sources, _ = looked(scene, "sources")
    _, keys, _ = looked(scene, "keys")
    assert torch.equal(out, unwatched)
    for few, many in zip(sources, keys, strict=True):
        sums = [part.sum(-1) for part in many.weights.split(list(many.tokens), dim=-1)]
        torch.testing.assert_close(few.weights, torch.stack(sums, -1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(few.faces, many.faces, atol=1e-5, rtol=1e-4)


def test_a_mask_closes_what_equation_7_closes(scene: Any) -> None:
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    masks[0, :, :3] = masks[1, :, 5:] = True
    _, gazes, _ = looked(scene, "keys", identity_masks=masks)
    for gaze in gazes:
        side = int(gaze.tokens[1] ** 0.5)
        open_ = identity_attention_mask(masks, [0, 1], (side, side), TEXT, gaze.tokens[1:])
        assert torch.equal(gaze.weights[0] > 0, open_)
        torch.testing.assert_close(gaze.weights.sum(-1), torch.ones(1, side * side))


def test_without_faces_the_last_samples_look_at_the_text_alone(scene: Any) -> None:
    unet, _, _, image, text = scene
    with torch.no_grad(), record_attention(unet, "keys", last=1) as gazes:
        unet(image.expand(2, -1, -1, -1), 5, torch.cat([text * 0, text]))
    for gaze in gazes:
        assert gaze.weights.shape[::2] == (1, TEXT) and not gaze.faces.any()
        assert gaze.weights.std(-1).max() > 1e-4, "the empty prompt's weights would be even"
    with torch.no_grad():
        unet(image, 5, text)
    assert len(gazes) == len(cross_attention_layers(unet)), "the hooks are gone"
