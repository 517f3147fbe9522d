"""``fusionlib generate``: pictures of a person, from face pictures and a prompt."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from companion.cli.options import DeviceOption, ProfileOption, one_sentence, option, plain_warnings
from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from PIL import Image

    from companion.request import Crop, FaceChoice, Reference

T = TypeVar("T")

MOST = 100_000
"""Most pictures of one command."""

EMBEDDED_NOTE = (
    "The embedded model was trained on rendered, synthetic people only: it knows nothing of "
    "photographs. For those, give --base-model and --adapter (see fusionlib generate --help)."
)


@one_sentence
def generate(
    prompt: Annotated[str, option("What to paint, as text.")],
    out: Annotated[Path, option("The PNG to write; folders are made as needed.")],
    reference: Annotated[
        list[Path] | None,
        option(
            """A picture of the face to keep, any image file: the face is found, turned level
            and cropped. Repeat it for several pictures of one person, or to blend people.
            Without any, the base model paints from the prompt alone."""
        ),
    ] = None,
    face: Annotated[
        list[str] | None,
        option(
            """Which face of the reference, if it shows several: `largest`, or a number counted
            from the left, from 0. One for all references, or repeat it, one for each.""",
            shown="the only one",
        ),
    ] = None,
    crop: Annotated[
        list[str] | None,
        option(
            """How to cut a reference out: `face` finds the face; `LEFT,TOP,RIGHT,BOTTOM` is
            your own box, in pixels, or in fractions of width and height if none is above 1;
            `none` takes the picture as it is (of one that is no square, the middle). One for
            all references, or repeat it, one for each.""",
            shown="face",
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        option(
            """Weight of the reference's face in the attention: 0 leaves it out, 1 is the
            paper's method. One for all references, or repeat it, one for each.""",
            shown="1.0",
        ),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        option(
            """For several people in one picture: an image file, white where the face of one
            shall be, and black elsewhere; scaled to the picture. Repeat it, one for each
            person."""
        ),
    ] = None,
    identity: Annotated[
        list[int] | None,
        option(
            """With masks: the number of the mask, from 0, to which the reference's person
            belongs. Repeat it, one for each reference.""",
            shown="0, 1, ...",
        ),
    ] = None,
    seed: Annotated[int, option("Seed of the noise: the same seed gives the same picture.")] = 0,
    count: Annotated[
        int,
        option(
            """Number of pictures to paint, of this seed and those that follow it. With more
            than one, the seed is added to each file's name: `image.png` becomes `image-0.png`
            and so on."""
        ),
    ] = 1,
    height: Annotated[
        int | None,
        option("Height of the picture in pixels.", shown="the model's own"),
    ] = None,
    width: Annotated[
        int | None,
        option("Width of the picture in pixels.", shown="the model's own"),
    ] = None,
    negative_prompt: Annotated[str, option("What to keep away from.")] = "",
    guidance_scale: Annotated[
        float | None,
        option("How strongly to follow prompt and face.", shown="the model's"),
    ] = None,
    steps: Annotated[int | None, option("Denoising steps.", shown="the model's")] = None,
    profile: ProfileOption = "embedded",
    base_model: Annotated[
        str | None,
        option(
            """A Stable Diffusion checkpoint in place of the profile's: a folder in diffusers'
            layout, or a hub id (owner/name).""",
            shown="the profile's",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        option(
            """A fusion adapter trained for that checkpoint (`fusionlib train adapter`): a
            folder or a hub id.""",
            shown="the checkpoint's own, or the profile's",
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[str, option("float32, float16 or bfloat16.")] = "float32",
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
    if count > MOST:
        raise FusionError(
            f"--count must be {MOST:,} or less, not {count}: begin again with --seed."
        )
    for name, model in (("base-model", base_model), ("adapter", adapter)):
        if model is not None and not model.strip():
            raise FusionError(f"--{name} is empty: name a model, or leave the option out.")
    for name, side in (("height", height), ("width", width)):
        if side is not None and side < 1:
            raise FusionError(f"--{name} must be a number of pixels, not {side}.")
    seeds = range(seed, seed + count)
    files = [out if count == 1 else out.parent / f"{out.stem}-{each}{out.suffix}" for each in seeds]
    paths, masks = list(reference or []), list(mask or [])

    from companion.request import Request

    request = Request(
        prompt=prompt,
        references=_references(paths, crop, face),
        strengths=tuple(_for_each("--strength", strength, 1.0, len(paths))),
        identities=_identities(identity, len(paths), len(masks)),
        guidance_scale=guidance_scale,
        steps=steps,
        seed=seed,
        further={"negative_prompt": negative_prompt or None},
    )
    for each in (request, replace(request, seed=seeds[-1])):
        each.check()
    faces = [_load(each) for each in request.references]

    from fusionlib.profiles import load_profile
    from fusionlib.profiles.loading import check_model, check_picture_size, load_pipeline

    settings = load_profile(profile)
    check_picture_size(base_model or settings.base_model, height, width)
    check_model(base_model or settings.base_model, file="model_index.json", what="base model")
    if adapter is not None:
        check_model(adapter, file="config.json", what="adapter")

    from fusionlib.inputs.images import METADATA_KEY, prepare_output, save_png
    from fusionlib.inputs.layout import masks_from_files
    from fusionlib.support.files import check_apart, check_writable
    from fusionlib.support.provenance import sha256_file

    for file in files:
        prepare_output(file)
        check_writable(file, METADATA_KEY)
        for path in (*paths, *masks):
            check_apart(file, path, inside=False)
    for path in masks:
        masks_from_files([path])  # a mask that cannot be read is an error before models are loaded
    pipeline = load_pipeline(
        settings, base_model=base_model, adapter=adapter, device=device, dtype=dtype
    )
    size, located = pipeline.image_size(height, width), None
    if masks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pipeline warns of overlaps, too
            located = masks_from_files(masks, size=size, resize=True)
    # The profile's numbers suit its own model: another one may bring others.
    usual = settings.sampling | (pipeline.sampling_defaults if base_model else {})
    request = replace(
        request,
        masks=located,
        size=None if height is None and width is None else size,
        guidance_scale=usual["guidance_scale"] if guidance_scale is None else guidance_scale,
        steps=usual["num_inference_steps"] if steps is None else steps,
    )
    method = request.method(pipeline)
    entries = [{"file": path.name, "sha256": sha256_file(path)} for path in masks]
    record = request.record(
        method,
        profile=settings.name,
        base_model=base_model,
        adapter=adapter,
        dtype=dtype,
        **({"identity_masks": entries} if masks else {}),
    )
    started = time.perf_counter()
    with plain_warnings():
        shown = method.prepare(faces)
        for file, number in zip(files, seeds, strict=True):
            image = method.generate(prompt, shown, number)
            save_png(image, file, {**record, "seed": number})
            seconds, started = time.perf_counter() - started, time.perf_counter()
            pixels = f"{image.width}x{image.height} pixels"
            typer.echo(f"{file}: {pixels}, seed {number}, {seconds:.1f} s")
    if faces and profile == "embedded" and base_model is None:
        typer.echo(EMBEDDED_NOTE, err=True)


def _for_each(option: str, given: Sequence[T] | None, default: T, references: int) -> list[T]:
    """The value of an option for each reference: it is given once for all, or once for each."""
    if given and not references:
        raise FusionError(f"{option} needs a --reference: name the picture that it is about.")
    values = list(given or [default])
    if len(values) == 1:
        return values * references
    if len(values) != references:
        raise FusionError(
            f"{option} is given {len(values)} times for {references} references: give it once for "
            "all, or once for each."
        )
    return values


def _references(
    paths: Sequence[Path], crop: Sequence[str] | None, face: Sequence[str] | None
) -> "tuple[Reference, ...]":
    """The references, each with its crop and its face as the options say."""
    from companion.request import Reference

    crops = [_crop(text) for text in _for_each("--crop", crop, "face", len(paths))]
    faces = [_face(text) for text in _for_each("--face", face, None, len(paths))]
    if face and "face" not in crops:
        raise FusionError("--face chooses among the faces found with --crop face: leave one out.")
    return tuple(map(Reference, paths, crops, faces))


def _identities(given: Sequence[int] | None, references: int, masks: int) -> tuple[int, ...]:
    """The number of the mask to which each reference's person belongs; empty without masks."""
    if not masks:
        if given:
            raise FusionError("--identity is the number of a mask: give a --mask for each person.")
        return ()
    if not references:
        raise FusionError("--mask needs a --reference: name a picture of the person.")
    identities = list(range(references)) if given is None else list(given)
    if len(identities) != references or not all(0 <= number < masks for number in identities):
        raise FusionError(
            f"{references} reference(s) and {masks} mask(s) need one --identity for each "
            f"reference, a number from 0 to {masks - 1}, not {identities}."
        )
    return tuple(identities)


def _crop(text: str) -> "Crop":
    if text == "face":
        return "face"
    if text == "none":
        return "none"
    try:
        box = tuple(float(edge) for edge in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise FusionError(
            f"--crop {text!r} must be face, none, or a box of four numbers LEFT,TOP,RIGHT,BOTTOM, "
            "as in 120,40,400,320."
        )
    return box


def _face(text: str | None) -> "FaceChoice":
    if text is None:
        return None
    if text == "largest":
        return "largest"
    if not (text.isdecimal() and len(text) < 5):
        raise FusionError(f"--face {text!r} must be largest, or a number from the left, from 0.")
    return int(text)


def _load(reference: "Reference") -> "Image.Image":
    """Load a reference; an error names the options that help."""
    from fusionlib.inputs.images import load_image
    from fusionlib.inputs.photos import FaceChoiceError, pixel_box

    if not isinstance(reference.crop, str):
        size = load_image(reference.path).size
        pixel_box(reference.crop, size, f"--crop of {reference.path}:")
    try:
        return reference.load()
    except FaceChoiceError as error:
        remedy = (
            f"choose one with --face 0 to --face {error.faces - 1} or --face largest"
            if error.faces
            else "take the whole picture with --crop none"
        )
        raise FusionError(
            f"{error.found}: {remedy}, or give your own box with --crop LEFT,TOP,RIGHT,BOTTOM."
        ) from error
