"""Methods whose weights a profile trains itself: ablations of fused attention, and counterparts.

The paper's claims about other systems are about published checkpoints, each with its own base
model, data and budget. Under a profile with ``counterparts`` every system is trained over the same
base model, on the same people and for the same number of steps
(`companion.methods.counterpart_training`), saved in its authors' layout, and read by the same
loader as the published one, with the options that are listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlib.errors import FusionError

if TYPE_CHECKING:
    from fusionlib.profiles import Profile

_SHORT = {"steps_share": 0.25, "cache_references": False}  # h_f of all pictures takes as long

ABLATIONS: dict[str, dict[str, Any]] = {
    "fused-v1": {"people_share": 0.5, "steps_share": 0.25},
    "decoupled": {"attention": "decoupled"},
    "fused-short": _SHORT,
    "fused-shared": _SHORT | {"reference_timestep": "shared"},
    "fused-caption": _SHORT | {"reference_prompt": "caption"},
    "fused-zero-value": _SHORT | {"init": "zero_value"},
    "fused-random": _SHORT | {"init": "random"},
    "fused-down": _SHORT | {"layers": ["down"]},
    "fused-mid": _SHORT | {"layers": ["mid"]},
    "fused-up": _SHORT | {"layers": ["up"]},
    "fused-fine": _SHORT | {"layers": [0]},
    "fused-coarse": _SHORT | {"layers": [1, 2, 3]},
}
"""The profile's own adapter with one thing changed: entries of the profile's ``training``, and
``steps_share``, a fraction of its steps. The choices that the paper leaves open are trained for a
quarter of the steps, and compared with ``fused-short``, from which they differ in that one choice.
"""

FILE = "ip-adapter.safetensors"
"""File of a counterpart with decoupled attention: the image projection and the layers."""

SENTENCE, WORD = "a photo of a person", "person"
"""Sentence of Arc2Face's counterpart, as its tokenizer may lack the word that Arc2Face uses."""

THICKNESS = 0.25
"""Thickness of the points that InstantID's counterpart is shown, in pictures of 128 pixels."""

_DLIB = {"file": FILE, "faces": "dlib"}


def compared_with(name: str) -> str | None:
    """The method from which an ablation differs in one thing; None for ``fused`` itself.

    Args:
        name: ``fused``, or a name in `ABLATIONS`.
    """
    if name == "fused":
        return None
    of_short = name != "fused-short" and _SHORT.items() <= ABLATIONS[name].items()
    return "fused-short" if of_short else "fused"


COUNTERPARTS: dict[str, dict[str, Any]] = {
    "ip-adapter": {"file": FILE, "scale": 1.0},
    "ip-adapter-plus": {"file": FILE, "scale": 1.0},
    "faceid": _DLIB | {"lora": False},
    "faceid-plus": _DLIB | {"lora": False},
    "faceid-portrait": _DLIB,
    "instantid": _DLIB
    | {
        "scale": 1.0,
        "identity_net_scale": 1.0,
        "thickness": THICKNESS,
        "shares_unet": True,
        "own_sampling": False,
    },
    "arc2face": {
        "faces": "dlib",
        "own_unet": False,
        "own_sampling": False,
        "sentence": SENTENCE,
        "word": WORD,
    },
}
"""Systems with a counterpart, and the options by which its loading differs from the published
one's. Scales are those of its training, as the adapter's strength is 1."""

DREAMBOOTH_RATE = 1e-3
"""Learning rate with which 500 steps learn a person, for a base model of the embedded size."""


def trained_options(kind: str, profile: Profile, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method under a profile that trains it itself; none where it does not.

    Args:
        kind: A name in `companion.methods.KNOWN`.
        profile: Profile with the folder of trained weights.
        given: Options of the study's file; weights that it names are used as they are. ``trained``
            is a folder that `companion.methods.counterpart_training.train_method` wrote, to be used
            in place of the profile's own.

    Raises:
        FusionError: The method was not trained yet, or it is an ablation, and there is neither a
            folder of counterparts nor an adapter given.
    """
    ablation = kind in ABLATIONS
    if kind == "fused" and "trained" in given:
        return {"adapter": str(_trained_folder(kind, profile, given))}
    if not (ablation or kind in COUNTERPARTS or kind == "dreambooth"):
        return {}
    own: dict[str, Any] = {"name": kind}
    if ablation:
        changes = ABLATIONS[kind]
        if changes.get("reference_timestep") == "shared":
            own["timestep_mode"] = "shared"
        if changes.get("reference_prompt") == "caption":
            own["reference_prompt"] = SENTENCE
    if given.get("weights") or given.get("adapter"):
        return own if ablation else {}
    if profile.counterparts is None and "trained" not in given:
        if not ablation:
            return {}
        raise FusionError(
            f"The method {kind!r} needs an adapter that was trained so, and the profile "
            f"{profile.name!r} names no folder of counterparts: give adapter= its folder."
        )
    if kind == "dreambooth":
        return {"learning_rate": DREAMBOOTH_RATE}
    folder = _trained_folder(kind, profile, given)
    if ablation:
        return own | {"adapter": str(folder)}
    own |= COUNTERPARTS[kind] | {"weights": str(folder)}
    if kind in ("ip-adapter", "ip-adapter-plus", "faceid-plus"):
        clip = Path(profile.clip_model)
        own |= {"clip": str(clip.parent), "image_encoder": clip.name}
    if kind in ("instantid", "arc2face"):  # in the others the profile's is the default
        own["base_model"] = profile.base_model
    return own


def _trained_folder(kind: str, profile: Profile, given: Mapping[str, Any]) -> Path:
    """The folder of a method's trained weights, which has to be there."""
    if "trained" in given:
        from fusionlib.profiles import resolve

        folder = Path(resolve(str(given["trained"])))
        missing = (
            f"There are no weights of {kind!r} in {folder}: `fusionlib train designs` trains those "
            f"of data/studies/trainings.yaml, and `fusionlib train method {kind} --seed N --out "
            "FOLDER` a single one."
        )
    else:
        folder = Path(str(profile.counterparts)) / kind
        what = "adapter" if kind in ABLATIONS else "weights"
        missing = (
            f"The method {kind!r} has not been trained under the profile {profile.name!r}: run "
            f"`fusionlib train method {kind} --profile {profile.name}`, or give the study's file "
            f"{what}: the folder of its weights."
        )
    if not (folder / "config.json").is_file():
        raise FusionError(missing)
    return folder
