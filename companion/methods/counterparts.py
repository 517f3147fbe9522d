"""Methods whose weights a profile trains itself: ablations of fused attention, and counterparts.

The paper's claims about other systems are about published checkpoints, each with a base model,
data and a budget of its own. Under a profile with ``counterparts`` every system is trained over
the same base model on the same people for the same number of steps (`companion.methods.counterpart_training`),
saved as its authors save theirs, and read by the same loader. What that loader has to be told
stands here.
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
``steps_share``, a part of its steps. The choices that the paper leaves open are trained for a
quarter of them, and compared with ``fused-short``, of which that alone is changed."""

FILE = "ip-adapter.safetensors"
"""In the folder of a counterpart with decoupled attention: the image projection and the layers."""

SENTENCE, WORD = "a photo of a person", "person"
"""Of Arc2Face's counterpart, whose tokenizer need not know the word that the published one uses."""

THICKNESS = 0.25
"""Of the points that InstantID's counterpart is shown, for a picture of 128 pixels."""

_DLIB = {"file": FILE, "faces": "dlib"}


def compared_with(name: str) -> str | None:
    """The ablation, or ``fused``, of which one thing is changed; None of ``fused`` itself.

    Args:
        name: ``fused``, or in `ABLATIONS`.
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
"""Systems with a counterpart, and how its weights differ from the published ones. Scales are those
that it is trained with, as the adapter's strength is 1."""

DREAMBOOTH_RATE = 1e-3
"""Learning rate for a base model of the embedded size, at which 500 steps learn a person."""


def trained_options(kind: str, profile: Profile, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method under a profile that trains it itself; none where it does not.

    Args:
        kind: a name in `companion.methods.KNOWN`.
        profile: says where trained weights lie.
        given: options of the study's file. One that names weights of its own is left alone.

    Raises:
        FusionError: the method was not trained yet, or cannot be without being named an adapter.
    """
    ablation = kind in ABLATIONS
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
    if profile.counterparts is None:
        if not ablation:
            return {}
        raise FusionError(
            f"The method {kind!r} needs an adapter that was trained so, and the profile "
            f"{profile.name!r} names no folder of counterparts: give adapter= its folder."
        )
    if kind == "dreambooth":
        return {"learning_rate": DREAMBOOTH_RATE}
    folder = Path(profile.counterparts) / kind
    if not (folder / "config.json").is_file():
        raise FusionError(
            f"The method {kind!r} has not been trained under the profile {profile.name!r}: run "
            f"`fusionlib train method {kind} --profile {profile.name}`, or give the study's file "
            f"{'adapter' if ablation else 'weights'}: the folder of its weights."
        )
    if ablation:
        return own | {"adapter": str(folder)}
    own |= COUNTERPARTS[kind] | {"weights": str(folder)}
    if kind in ("ip-adapter", "ip-adapter-plus", "faceid-plus"):
        clip = Path(profile.clip_model)
        own |= {"clip": str(clip.parent), "image_encoder": clip.name}
    if kind in ("instantid", "arc2face"):  # elsewhere the profile's is the default
        own["base_model"] = profile.base_model
    return own
