"""Methods: ways of making pictures of a person, each a `Method`, compared by a study.

One file for each system. What a study needs of a method is in its `Method` and nothing else, so a
new system is one new function that returns one. `KNOWN` gives it a name that a study's file can
say; a function outside of this package is named by its module.
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
"""``prepare(references)``: what is computed once from a person's references, for all pictures."""

Generate = Callable[[str, Any, int], Image.Image]
"""``generate(prompt, prepared, noise_seed)``: one picture, from what `Prepare` returned."""


@dataclass(frozen=True)
class Method:
    """A way of making pictures of a person.

    Attributes:
        name: in tables.
        generate: makes a picture; the same arguments give the same bytes, on one machine.
        settings: all that determines a picture besides person, prompt and noise: hashes of weights
            and code, steps, guidance. Anything JSON can hold.
        references: how many of a person's references it sees, from the first on.
        prepare: makes of these what `generate` takes; by default they are handed on as they are.
        needs: folders or hub ids of the weights it loads.
        citation: of the paper that describes it, a key of ``book/references.bib``.
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
    """What methods are built from. Models are loaded when a method asks for them, and once.

    Attributes:
        profile: names the models.
        device: a torch device; None takes a GPU if there is one.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        threads: of the CPU, for each picture: sums over more threads round in other places.
        sampling: arguments of a pipeline's call that all methods share.
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


Factory = Callable[..., Method]
"""``factory(models, **options)``, with the options that stand in a study's file."""

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
    **dict.fromkeys(ABLATIONS, "companion.methods.fusion:build_fused"),
}
"""Methods by the name that a study's file says, each as ``module:function`` of a `Factory`."""


def build_method(kind: str, models: Models, **options: Any) -> Method:
    """Build a method by name.

    Args:
        kind: one of `KNOWN`, or ``module:function`` of a `Factory` of your own.
        models: what it is built from.
        options: of the method.

    Raises:
        FusionError: there is no such method, or it has no such option, or not of such a value.
    """
    options = trained_options(kind, models.profile, options) | options
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
        kinds: see `build_method`.
        models: what they are built from.
        options: of every method.

    Returns:
        The methods in the order of their names, and for each that is missing the reason.
    """
    built, missing = [], {}
    for kind in kinds:
        try:
            built.append(build_method(kind, models, **options))
        except FusionError as error:
            missing[kind] = str(error)
    return built, missing
