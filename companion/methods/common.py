"""What the compared systems share: reading weights and faces, painting, and a picture's key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import fusionlib
from companion.faces.arcface import Embedder, FoundFace
from companion.methods import Method, Models, Prepare
from fusionlib.errors import FusionError
from fusionlib.support.paths import user_path
from fusionlib.support.provenance import package_versions, sha256_file, sha256_json, sha256_modules

Call = Callable[[str, Any], dict[str, Any]]
"""``call(prompt, prepared)`` makes the arguments of the pipeline's call for a picture."""

Weights = dict[str, dict[str, Tensor]]
"""An IP-Adapter checkpoint: ``image_proj`` and ``ip_adapter``, each a state dict."""

PAINTING = ("", "inputs/")
"""Folders of fusionlib whose sources take part in painting; training and profiles do not."""


@contextmanager
def as_recorded(threads: int) -> Iterator[None]:
    """Compute sums in a fixed order, so that a picture comes out with the same bytes again."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def paint(pipeline: Any, threads: int, noise_seed: int, **arguments: Any) -> Image.Image:
    """One picture of a pipeline; the same arguments give the same bytes."""
    # Always drawn on the CPU: the seed alone determines the noise, whatever the device.
    generator = torch.Generator("cpu").manual_seed(noise_seed)
    with as_recorded(threads), torch.no_grad():
        image: Image.Image = pipeline(**arguments, generator=generator).images[0]
    return image


def pipeline_key(
    pipeline: Any, weights: Mapping[str, str], threads: int, code: Sequence[str]
) -> dict[str, Any]:
    """The part of a picture's key that a pipeline determines, besides the arguments of its call.

    A study paints a picture again if anything in its key has changed.

    Args:
        pipeline: A pipeline of diffusers.
        weights: Hash of the weights it computes with, by name.
        threads: CPU threads for each picture; on a GPU they make no difference.
        code: The method's sources, relative to the package ``companion``. Those of fusionlib that
            take part in painting, and this module, always belong to the key.
    """
    scheduler = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    method, companion = Path(fusionlib.__file__).parent, Path(__file__).parents[1]
    sources = sorted(file for folder in PAINTING for file in method.glob(f"{folder}*.py"))
    sources += [companion / name for name in ("methods/common.py", *code)]
    key = {
        "weights": dict(weights),
        "scheduler": {"class": type(pipeline.scheduler).__name__, **scheduler},
        "code": sha256_json([sha256_file(source) for source in sources]),
        "versions": package_versions(("torch", "diffusers", "transformers")),
        "device": pipeline.device.type,
    }
    own = getattr(pipeline, "sampling_defaults", {})  # which count where the call has no others
    key |= {"sampling_defaults": own} if own else {}
    return key | {"threads": threads} if key["device"] == "cpu" else key


def make_method(
    name: str,
    models: Models,
    pipeline: Any,
    *,
    call: Call,
    prepare: Prepare,
    sampling: Mapping[str, Any],
    settings: Mapping[str, Any],
    references: int,
    code: Sequence[str],
    needs: Sequence[str],
    citation: str,
    embedder: Embedder | None = None,
) -> Method:
    """A method that computes with a diffusers pipeline of its own.

    Args:
        name: Name in tables.
        models: CPU threads of a picture, and arguments that a study's methods share.
        pipeline: The pipeline with whatever the method adds to it; its weights are hashed.
        call: Function that makes the arguments that depend on prompt and person.
        prepare: Function that makes of a person's references what `call` takes.
        sampling: The other arguments; they override those that a study's methods share.
        settings: Further choices that determine a picture.
        references: Number of references that the method sees.
        code: The method's own sources, see `pipeline_key`.
        needs: Folders or hub ids of the weights.
        citation: Key of its paper in ``book/references.bib``.
        embedder: Face recogniser that it reads references with, if any.

    Raises:
        FusionError: The pipeline's call has no such argument, or `references` is not positive.
    """
    if not (isinstance(references, int) and references >= 1):
        raise FusionError(f"references must be a whole number of at least 1, not {references!r}.")
    arguments = {**(models.sampling or {}), **sampling}
    known = inspect.signature(type(pipeline).__call__).parameters
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise FusionError(f"The method {name!r} has no option {unknown[0]!r}.")
    threads = models.threads or torch.get_num_threads()

    def prepare_as_recorded(images: Sequence[Image.Image]) -> Any:
        with as_recorded(threads):
            return prepare(images)

    def generate(prompt: str, prepared: Any, noise_seed: int) -> Image.Image:
        with as_recorded(threads), torch.no_grad():
            given = call(prompt, prepared)
        return paint(pipeline, threads, noise_seed, **arguments, **given)

    if embedder is not None:
        settings = {**settings, "face_models": embedder.fingerprint}
        code, needs = (*code, "faces/arcface.py"), (*needs, embedder.needs)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = {"pipeline": sha256_modules(modules)}
    key = pipeline_key(pipeline, weights, threads, code)
    return Method(
        name=name,
        generate=generate,
        settings={**arguments, **settings, "references": references, **key},
        references=references,
        prepare=prepare_as_recorded,
        needs=tuple(needs),
        citation=citation,
    )


def read_faces(
    embedder: Embedder, images: Sequence[Image.Image]
) -> tuple[list[FoundFace], list[Tensor]]:
    """The largest face of each reference, and its vector, not normalised.

    Raises:
        NoFaceError: A reference shows no face; the message gives its number.
    """
    faces = [embedder.find(image, f"Reference {n}") for n, image in enumerate(images, start=1)]
    vectors = map(embedder.embed, images, faces)
    return faces, [torch.from_numpy(vector) for vector in vectors]


def guided(models: Models, sampling: Mapping[str, Any]) -> bool:
    """Whether a picture is made with classifier-free guidance, by its own and shared arguments."""
    scale = {"guidance_scale": 7.5, **(models.sampling or {}), **sampling}["guidance_scale"]
    return bool(scale > 1)


def locate(source: str, file: str, what: str) -> Path:
    """A weight file of a folder or of a hub repository, downloaded if it is not here yet.

    Args:
        source: Folder, laid out as it is published, or hub id.
        file: Path of the file in there.
        what: Name of the method, for an error.

    Raises:
        FusionError: The file is not there; the message says how to get it.
    """
    folder = user_path(source)
    path = folder / file
    if path.is_file():
        return path
    if folder.exists() or folder.parent.is_dir() or source.count("/") != 1:
        raise FusionError(
            f"{what} needs the file {path}, which is not there: put the published file there, or "
            "give weights= the folder that holds it."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(source, file))
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # no network: an OSError
        raise FusionError(
            f"{what} needs {file} of {source}, which cannot be downloaded here: where there is a "
            f"network, run `hf download {source} {file} --local-dir FOLDER`, and give weights= "
            "that folder."
        ) from error


def read_adapter(path: Path) -> Weights:
    """Read an IP-Adapter checkpoint in either published format, without running any code of it.

    Args:
        path: File ``.safetensors``, with the parts' names before a dot, or ``.bin``, a pickle of
            two dictionaries, of which only tensors and containers are unpickled.

    Raises:
        FusionError: The file is damaged, or is no such checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = {"image_proj": {}, "ip_adapter": {}}
            for name, tensor in load_file(path).items():
                part, _, rest = name.partition(".")
                content[part][rest] = tensor
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        return {part: dict(content[part]) for part in ("image_proj", "ip_adapter")}
    except Exception as error:  # torch, pickle and safetensors each have errors of their own
        raise FusionError(
            f"{path} is no IP-Adapter checkpoint with the parts image_proj and ip_adapter "
            f"({type(error).__name__}): download it again."
        ) from error


def load_part(cls: Any, source: str, subfolder: str, what: str, dtype: torch.dtype) -> Any:
    """Load one model of a published folder or hub repository by its class's ``from_pretrained``.

    Args:
        cls: Class of diffusers or transformers.
        source: Folder or hub id.
        subfolder: Folder of the model in there.
        what: Name of the method, for an error.
        dtype: Type of the weights.

    Raises:
        FusionError: The model is not there, or its weights do not fit its ``config.json``.
    """
    from fusionlib.profiles.loading import quietly

    locate(source, f"{subfolder}/config.json", what)
    try:
        with quietly():
            return cls.from_pretrained(source, subfolder=subfolder, torch_dtype=dtype).eval()
    except Exception as error:  # diffusers, transformers and the hub each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FusionError(f"{what} cannot load {source}/{subfolder}: {reason}") from error
