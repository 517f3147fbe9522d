"""Pipelines that are copied, saved in variants, or share a UNet between threads."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModelMixin
from test_pipeline import face, generate, same

from fusionlib import FusionAdapter, FusionError, FusionPipeline, pipeline_inputs
from fusionlib.processor import exclusive_use


@pytest.fixture
def pipeline(tiny_checkpoint: Path) -> FusionPipeline:
    pipeline = FusionPipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def of_its_own(pipeline: FusionPipeline) -> FusionPipeline:
    """A pipeline over the same models, with a scheduler of its own, as threads need it."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    other = FusionPipeline.from_pipe(pipeline, scheduler=scheduler)
    other.set_progress_bar_config(disable=True)
    return other


def test_threads_that_share_a_unet_see_their_own_faces(pipeline: FusionPipeline) -> None:
    calls: list[dict[str, Any]] = [
        {"references": [face(1)]},
        {"references": [face(2)], "timestep_mode": "shared"},
        {},
        {"references": [face(3)], "guidance_mode": "separate"},
    ]
    alone = [generate(pipeline, "a face", **call) for call in calls]
    pipelines = [of_its_own(pipeline) for _ in calls]
    with ThreadPoolExecutor(len(calls)) as threads:
        for _ in range(3):
            made = threads.map(
                lambda each, call: generate(each, "a face", **call), pipelines, calls
            )
            for expected, image in zip(alone, made, strict=True):
                assert np.array_equal(image, expected)
    assert np.array_equal(generate(pipeline, "a face"), alone[2]), "no face outlives the calls"


def test_a_thread_waits_until_another_shows_no_faces_any_more(pipeline: FusionPipeline) -> None:
    cache, other = pipeline.encode_references([face(1)]), of_its_own(pipeline)
    alone, inside = generate(other, "a face"), Event()

    def paint() -> np.ndarray:
        inside.set()
        return generate(other, "a face")

    with ThreadPoolExecutor(1) as thread:
        with pipeline.adapter.conditioned(cache, batch_size=1), exclusive_use(pipeline.unet):
            waiting = thread.submit(paint)
            inside.wait()
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert np.array_equal(waiting.result(), alone)


def test_a_thread_that_waits_leaves_the_shared_tokenizer_alone(
    pipeline: FusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fast tokenizer keeps how it was last told to pad: another thread's tokens would be cut.
    read, waits, other = Event(), Event(), of_its_own(pipeline)
    tokenize, count = type(other.tokenizer).__call__, pipeline_inputs._count_prompts

    def seen(*args: Any, **kwargs: Any) -> Any:
        read.set()
        return tokenize(*args, **kwargs)

    def about_to_read(*args: Any) -> int:
        waits.set()
        return count(*args)

    monkeypatch.setattr(type(other.tokenizer), "__call__", seen)
    monkeypatch.setattr(
        pipeline_inputs, "_count_prompts", about_to_read
    )  # the last before it reads
    with ThreadPoolExecutor(1) as thread:
        with exclusive_use(pipeline.unet):
            waiting = thread.submit(generate, other, "a face")
            assert waits.wait(60) and not read.wait(0.3)
        waiting.result()
    assert read.is_set()


def test_a_copy_of_a_pipeline_is_one_of_its_own(pipeline: FusionPipeline) -> None:
    shown = generate(pipeline, "a face", references=[face(1)])
    twin = copy.deepcopy(pipeline)
    assert np.array_equal(generate(twin, "a face", references=[face(1)]), shown)
    assert twin.adapter.unet is twin.unet and pipeline.adapter.unet is pipeline.unet
    with torch.no_grad():
        for weight in twin.adapter.parameters():
            weight.zero_()
    assert not same(generate(twin, "a face", references=[face(1)]), shown)
    assert np.array_equal(generate(pipeline, "a face", references=[face(1)]), shown)
    twin.adapter.detach(twin.unet)
    assert np.array_equal(generate(twin, "a face"), generate(pipeline, "a face"))


def test_an_attached_adapter_can_be_sent_to_another_process(pipeline: FusionPipeline) -> None:
    sent = pickle.loads(pickle.dumps(pipeline.adapter))
    assert sent.unet is None and pipeline.adapter.unet is pipeline.unet
    for name, weight in pipeline.adapter.named_parameters():
        assert torch.equal(sent.get_parameter(name), weight)
    shown = generate(pipeline, "a face", references=[face(1)])
    pipeline.load_adapter_weights(sent)
    assert np.array_equal(generate(pipeline, "a face", references=[face(1)]), shown)


def test_a_variant_is_saved_and_loaded_as_a_whole(pipeline: FusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "adapter/diffusion_pytorch_model.fp16.safetensors").is_file()
    again = FusionPipeline.from_pretrained(tmp_path, variant="fp16")
    again.set_progress_bar_config(disable=True)
    expected = generate(pipeline, "a face", references=[face(1)])
    assert np.array_equal(generate(again, "a face", references=[face(1)]), expected)
    # An adapter without this variant is loaded as it is.
    pipeline.adapter.save_pretrained(tmp_path / "plain")
    FusionPipeline.from_pretrained(tmp_path, adapter=tmp_path / "plain", variant="fp16")


def test_the_adapter_is_always_saved_as_safetensors(
    pipeline: FusionPipeline, tmp_path: Path
) -> None:
    """So that what ``save_pretrained`` wrote is read again."""
    with pytest.warns(UserWarning, match="safe_serialization=False"):
        pipeline.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "unet/diffusion_pytorch_model.bin").is_file()
    again = FusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    expected = generate(pipeline, "a face", references=[face(1)])
    assert np.array_equal(generate(again, "a face", references=[face(1)]), expected)


def test_a_variant_in_shards_is_found(pipeline: FusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "adapter").glob("*.fp16-*-of-*.safetensors"))) > 1
    expected = generate(pipeline, "a face", references=[face(1)])
    for adapter in (None, tmp_path / "adapter"):
        again = FusionPipeline.from_pretrained(tmp_path, adapter=adapter, variant="fp16")
        again.set_progress_bar_config(disable=True)
        assert same(generate(again, "a face", references=[face(1)]), expected)


def test_no_pickle_is_read_in_place_of_missing_weights(
    pipeline: FusionPipeline, tmp_path: Path
) -> None:
    ModelMixin.save_pretrained(pipeline.adapter, tmp_path, safe_serialization=False)
    assert (tmp_path / "diffusion_pytorch_model.bin").is_file()
    with pytest.raises(FusionError, match="safetensors"):
        FusionAdapter.from_pretrained(tmp_path)
