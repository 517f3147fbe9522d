"""``fusionlib generate``: pictures of a person, from face pictures and a prompt."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from companion.cli.options import DeviceOption, ProfileOption, one_sentence, plain_warnings
from companion.cli.references import identities_of, prepare_references, strengths_of
from fusionlib import __version__
from fusionlib.errors import FusionError

EMBEDDED_NOTE = (
    "The embedded model was trained on rendered, synthetic people only: it knows nothing of "
    "photographs. For those, give --base-model and --adapter (see fusionlib generate --help)."
)


@one_sentence
def generate(
    prompt: Annotated[str, typer.Option(help="What to paint, as text.")],
    out: Annotated[Path, typer.Option(help="The PNG to write; folders are made as needed.")],
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture of the face to keep, any image file: the face is found, turned level "
            "and cropped. Repeat it for several pictures of one person, or to blend people. "
            "Without any, the base model paints from the prompt alone."
        ),
    ] = None,
    face: Annotated[
        list[str] | None,
        typer.Option(
            help="Which face of the reference, if it shows several: `largest`, or a number "
            "counted from the left, from 0. One for all references, or repeat it, one for each.",
            show_default="the only one",
        ),
    ] = None,
    crop: Annotated[
        list[str] | None,
        typer.Option(
            help="How to cut a reference out: `face` finds the face; `LEFT,TOP,RIGHT,BOTTOM` is "
            "your own box, in pixels, or in fractions of width and height if none is above 1; "
            "`none` takes the picture as it is (of one that is no square, the middle). One for "
            "all references, or repeat it, one for each.",
            show_default="face",
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="Weight of the reference's face in the attention: 0 leaves it out, 1 is the "
            "paper's method. One for all references, or repeat it, one for each.",
            show_default="1.0",
        ),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            help="For several people in one picture: an image file, white where the face of one "
            "shall be, and black elsewhere; scaled to the picture. Repeat it, one for each person."
        ),
    ] = None,
    identity: Annotated[
        list[int] | None,
        typer.Option(
            help="With masks: the number of the mask, from 0, to which the reference's person "
            "belongs. Repeat it, one for each reference.",
            show_default="0, 1, ...",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Names the noise: same seed, same picture.")] = 0,
    count: Annotated[
        int,
        typer.Option(
            help="Paint so many pictures, of this seed and those that follow it. With more than "
            "one, the seed is added to each file's name: `image.png` becomes `image-0.png` and so "
            "on.",
        ),
    ] = 1,
    height: Annotated[
        int | None,
        typer.Option(help="Height of the picture in pixels.", show_default="the model's own"),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Width of the picture in pixels.", show_default="the model's own"),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How strongly to follow prompt and face.", show_default="the profile's"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps.", show_default="the profile's")
    ] = None,
    profile: ProfileOption = "embedded",
    base_model: Annotated[
        str | None,
        typer.Option(
            help="A Stable Diffusion checkpoint in place of the profile's: a folder in diffusers' "
            "layout, or a hub id (owner/name).",
            show_default="the profile's",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A fusion adapter trained for that checkpoint (`fusionlib train adapter`): a "
            "folder or a hub id.",
            show_default="the checkpoint's own, or the profile's",
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    r"""Paint a picture of the person in a reference picture.

    The embedded model, which is the default, is small (128 pixels) and was trained on **synthetic,
    rendered people only**. It runs anywhere, and it shows how the method works; it will not paint
    you from a photograph. For that, name a real checkpoint and an adapter trained for it:

        fusionlib generate --reference me.jpg --out astronaut.png \
            --prompt "an astronaut in a garden" --adapter my-adapter \
            --base-model SG161222/Realistic_Vision_V4.0_noVAE

    The PNG records how it was made (prompt, seed, hashes of references and weights, settings,
    versions) in a text chunk named `fusionlib`. The same command writes the same bytes again.

    Two people of one photograph, each in a place of their own:

        fusionlib generate --reference us.jpg --face 0 --mask left.png \
            --reference us.jpg --face 1 --mask right.png \
            --prompt "two people in a garden" --out both.png

    To try it with one of the synthetic people that the model never saw:

        fusionlib generate --reference data/heldout/0000_0.jpg \
            --prompt "a photo of a laughing person" --out image.png
    """
    if not prompt.strip():
        raise FusionError("The prompt is empty: say with --prompt what to paint.")
    if count < 1:
        raise FusionError(f"--count must be 1 or more, not {count}.")
    for each in (seed, seed + count - 1):
        if not 0 <= each < 2**63:
            raise FusionError(f"The seed {each} is not a number from 0 to 2^63 - 1.")
    for name, side in (("height", height), ("width", width)):
        if side is not None and side < 1:
            raise FusionError(f"--{name} must be a number of pixels, not {side}.")
    seeds = range(seed, seed + count)
    files = [out if count == 1 else out.parent / f"{out.stem}-{each}{out.suffix}" for each in seeds]
    paths, masks = list(reference or []), list(mask or [])
    strengths = strengths_of(strength, len(paths))
    identities = identities_of(identity, len(paths), len(masks))

    from fusionlib.checks import check_guidance_scale, check_steps
    from fusionlib.inputs.images import prepare_output, save_png

    if guidance_scale is not None:
        check_guidance_scale(guidance_scale)
    if steps is not None:
        check_steps(steps)
    faces, cuts = prepare_references(paths, crop, face)

    from fusionlib.profiles import load_profile
    from fusionlib.profiles.loading import check_model, load_pipeline

    settings = load_profile(profile)
    check_model(base_model or settings.base_model, file="model_index.json", what="base model")
    if adapter is not None:
        check_model(adapter, file="config.json", what="adapter")
    for file in files:
        prepare_output(file)

    from companion.methods.fusion import fused
    from fusionlib.inputs.layout import masks_from_files
    from fusionlib.support.provenance import git_commit, package_versions, sha256_file

    for path in masks:
        masks_from_files([path])  # what cannot be read is better known now
    pipeline = load_pipeline(
        settings, base_model=base_model, adapter=adapter, device=device, dtype=dtype
    )
    layout: dict[str, Any] = {}
    if height is not None or width is not None:
        layout["height"], layout["width"] = pipeline.image_size(height, width)
    if masks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pipeline warns of overlaps, too
            located = masks_from_files(masks, size=pipeline.image_size(height, width), resize=True)
        layout |= {"identity_masks": located, "reference_identity": identities}
    method = fused(
        pipeline,
        strengths=strengths,
        num_inference_steps=steps or settings.num_inference_steps,
        guidance_scale=settings.guidance_scale if guidance_scale is None else guidance_scale,
        negative_prompt=negative_prompt or None,
        **layout,
    )
    record = {
        "references": [
            {"file": path.name, "sha256": sha256_file(path), **cut}
            for path, cut in zip(paths, cuts, strict=True)
        ],
        "profile": settings.name,
        "base_model": base_model,
        "adapter": adapter,
        "dtype": dtype,
        "fusionlib": __version__,
        "commit": git_commit(),
        **method.settings,
    }
    if any(cut["crop"] == "face" for cut in cuts):
        finder = package_versions(["dlib-bin", "face-recognition-models"])
        record["versions"] = {**method.settings["versions"], **finder}
    if masks:
        record["identity_masks"] = [
            {"file": path.name, "sha256": sha256_file(path)} for path in masks
        ]
    started = time.perf_counter()
    with plain_warnings():
        shown = method.prepare(faces)
        for file, each in zip(files, seeds, strict=True):
            image = method.generate(prompt, shown, each)
            save_png(image, file, {"prompt": prompt, "seed": each, **record})
            seconds, started = time.perf_counter() - started, time.perf_counter()
            typer.echo(f"{file}: {image.width}x{image.height} pixels, seed {each}, {seconds:.1f} s")
    if faces and profile == "embedded" and base_model is None:
        typer.echo(EMBEDDED_NOTE, err=True)
