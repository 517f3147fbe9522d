"""Methods: ways of making pictures of a person, each a `Method`, compared by a study.

How to add a system:

1. Write a module here with a function ``build_NAME(models, **options)`` that returns a `Method`;
   `companion.methods.common.make_method` makes one of a diffusers pipeline. A study needs no more.
2. Add a line to `KNOWN`, by which a study's file can name it. (A function outside of this package
   needs none: a study's file names it as ``module:function``.)
3. Add its paper to ``book/references.bib``, and a page to ``book/methods/``.
4. If a profile is to train its counterpart over its own base model: an entry in
   `companion.methods.counterparts.COUNTERPARTS`, and its training in `counterpart_training`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from PIL import Image

from companion.methods.counterparts import ABLATIONS, trained_options
from fusionlib.checks import check_sampling
from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from fusionlib.pipeline import FusionPipeline
    from fusionlib.profiles import Profile

Prepare = Callable[[Sequence[Image.Image]], Any]
"""``prepare(references)`` computes once what all pictures of a person share."""

Generate = Callable[[str, Any, int], Image.Image]
"""``generate(prompt, prepared, noise_seed)`` makes one picture, from what `Prepare` returned."""


@dataclass(frozen=True)
class Method:
    """A way of making pictures of a person.

    Attributes:
        name: Name in tables.
        generate: Function that makes a picture; on one machine, the same arguments give the same
            bytes.
        settings: All that determines a picture besides person, prompt and noise: hashes of weights
            and code, steps, guidance. Anything JSON can hold.
        references: Number of a person's references that it sees, from the first on.
        prepare: Function that makes of these what `generate` takes; by default their list.
        needs: Folders or hub ids of the weights that it loads.
        citation: Key of its paper in ``book/references.bib``.
    """

    name: str
    generate: Generate
    settings: Mapping[str, Any]
    references: int = 1
    prepare: Prepare = list
    needs: tuple[str, ...] = ()
    citation: str = ""


@dataclass(frozen=True)
class Models:
    """What methods are built from. The pipeline is loaded when a method asks for it, and once.

    Attributes:
        profile: Profile that names the models.
        device: A torch device; None takes a GPU if there is one.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        threads: CPU threads for each picture; with another number, sums are rounded differently.
        sampling: Arguments of a pipeline's call that all methods share.
    """

    profile: Profile
    device: str | None = None
    dtype: str = "float32"
    threads: int | None = None
    sampling: Mapping[str, Any] | None = None

    @cached_property
    def pipeline(self) -> FusionPipeline:
        """The profile's base model with its adapter."""
        from fusionlib.profiles.loading import load_pipeline

        return load_pipeline(self.profile, device=self.device, dtype=self.dtype)

    @cached_property
    def controlled(self) -> Any:
        """The pipeline with the profile's ControlNet."""
        from fusionlib.profiles.loading import load_controlled

        return load_controlled(self.profile, self.pipeline)


Factory = Callable[..., Method]
"""``factory(models, **options)``, with the options that stand in a study's file."""

CONTROLS = {
    "covered": "companion.methods.covered:build_covered",
    "posed": "companion.methods.groups:build_posed",
    "reference": "companion.methods.anchors:build_reference",
    "restored": "companion.methods.anchors:build_restored",
}
"""What systems are compared with and is none itself: other references, another pose, no model."""

KNOWN = {
    "text-only": "companion.methods.fusion:build_text_only",
    "fused": "companion.methods.fusion:build_fused",
    "ip-adapter": "companion.methods.ip_adapter:build_ip_adapter",
    "ip-adapter-plus": "companion.methods.ip_adapter:build_ip_adapter_plus",
    "faceid": "companion.methods.ip_adapter_faceid:build_faceid",
    "faceid-plus": "companion.methods.ip_adapter_faceid:build_faceid_plus",
    "faceid-sdxl": "companion.methods.ip_adapter_faceid:build_faceid_sdxl",
    "faceid-portrait": "companion.methods.ip_adapter_faceid:build_faceid_portrait",
    "instantid": "companion.methods.instantid:build_instantid",
    "arc2face": "companion.methods.arc2face:build_arc2face",
    "dreambooth": "companion.methods.dreambooth:build_dreambooth",
    **CONTROLS,
    **dict.fromkeys(ABLATIONS, "companion.methods.fusion:build_fused"),
}
"""Methods by the name in a study's file, each as ``module:function`` of a `Factory`."""


def build_method(kind: str, models: Models, **options: Any) -> Method:
    """Build a method by name.

    Args:
        kind: One of `KNOWN`, or ``module:function`` of a `Factory` of your own.
        models: What it is built from.
        options: Options of the method. One that `companion.methods.counterpart_training` trains
            takes ``trained`` as well, the folder of such weights, in place of the profile's own.

    Raises:
        FusionError: There is no such method or option, or an option's value does not fit.
    """
    own = trained_options(kind, models.profile, options)
    if own:  # they say where the trained weights are
        options.pop("trained", None)
    options = own | options
    check_sampling({**(models.sampling or {}), **options}, f"the method {kind!r}")
    place = KNOWN.get(kind, kind)
    module, _, function = place.partition(":")
    try:
        factory: Factory = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise FusionError(
            f"There is no method {kind!r}: use one of {', '.join(KNOWN)}, or module:function of "
            f"your own ({error})."
        ) from error
    try:
        return factory(models, **options)
    except TypeError as error:
        raise FusionError(f"The method {kind!r} cannot be built: {error}.") from error


def build_available(
    kinds: Sequence[str], models: Models, **options: Any
) -> tuple[list[Method], dict[str, str]]:
    """Build those of several methods whose weights are there.

    Args:
        kinds: Names of methods, as for `build_method`.
        models: What they are built from.
        options: Options of every method.

    Returns:
        The methods in the order of `kinds`, and the reason for each that is missing.
    """
    built, missing = [], {}
    for kind in kinds:
        try:
            built.append(build_method(kind, models, **options))
        except FusionError as error:
            missing[kind] = str(error)
    return built, missing
