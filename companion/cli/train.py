"""``fusionlib train``: train one of the models."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from companion.cli.options import ProfileOption, one_sentence
from fusionlib.errors import FusionError


class Model(StrEnum):
    """The models that `fusionlib train` trains."""

    vae = "vae"
    clip = "clip"
    base = "base"
    adapter = "adapter"
    controlnet = "controlnet"
    identity = "identity"
    classifier = "classifier"
    method = "method"


MODULES = {
    Model.vae: "companion.embedded.vae",
    Model.clip: "companion.embedded.clip",
    Model.base: "companion.embedded.unet",
    Model.adapter: "fusionlib.training.adapter",
    Model.controlnet: "companion.embedded.controlnet",
    Model.identity: "companion.embedded.recogniser",
    Model.classifier: "companion.embedded.classifier",
    Model.method: "companion.methods.counterpart_training",
}
"""The module that trains each model."""


@one_sentence
def train(
    model: Annotated[
        Model,
        typer.Argument(
            help="`vae`, `clip` and `base` make a checkpoint from scratch, in this order; "
            "`adapter` trains the method on top of a frozen checkpoint, `controlnet` one that "
            "follows depth maps; `identity` and `classifier` train the judges of its pictures; "
            "`method` trains a system that it is compared with, or the method with one thing "
            "changed."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            help="With `method`: which. Without a name, what there is, and how many parameters "
            "each would train.",
            show_default=False,
        ),
    ] = None,
    profile: ProfileOption = "embedded",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint.", show_default="the profile's")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after this time, with a checkpoint.", show_default="no limit"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps.", show_default="the profile's")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on from the last checkpoint if there is one."),
    ] = True,
    start_from: Annotated[
        Path | None,
        typer.Option(
            help="Begin with trained weights: the folder of a checkpoint or, for `adapter`, of an "
            "adapter. With `vae`, only the decoder is trained on.",
            show_default="random weights",
        ),
    ] = None,
    encoder: Annotated[
        bool,
        typer.Option(
            "--encoder",
            help="With `vae --start-from`: train the encoder on as well. What was trained on its "
            "latents has to be trained on.",
        ),
    ] = False,
) -> None:
    """Train one of the models of a profile. A run that was stopped or killed goes on.

    The embedded profile's models are trained on rendered people, made by
    `fusionlib people render`. On several GPUs or machines, start the adapter through accelerate:

        accelerate launch -m fusionlib train adapter --profile paper

    To compare systems with nothing but their design different, each is trained over the same base
    model, on the same people, for the same number of steps:

        fusionlib train method ip-adapter --profile embedded
    """
    if minutes is not None and not minutes > 0:
        raise FusionError(f"The time limit must be more than 0 minutes, not {minutes}.")
    if steps is not None and steps < 1:
        raise FusionError(f"The number of steps must be 1 or more, not {steps}.")
    if start_from is not None and not start_from.is_dir():
        raise FusionError(f"--start-from names {start_from}, and there is no such folder.")
    from importlib import import_module

    from fusionlib.profiles import load_profile
    from fusionlib.training.runs import RunOptions

    options = RunOptions(out, minutes, steps, resume, start_from)
    settings = load_profile(profile)
    module: Any = import_module(MODULES[model])
    if model is Model.method:
        if name is None and start_from is None:
            typer.echo(module.budgets(settings).to_string(float_format="{:.2f}".format))
        else:
            module.train_method(settings, name or "", options)
        return
    if name is not None:
        raise FusionError(f"A name goes with `method`, not with `{model.value}`.")
    if encoder and (model is not Model.vae or start_from is None):
        raise FusionError("--encoder goes with `vae --start-from FOLDER`.")
    more: dict[str, Any] = {"encoder": True} if encoder else {}
    if model is Model.adapter:
        from companion.evaluation.training_monitor import make_monitor

        more["make_monitor"] = make_monitor
    module.train(settings, options, **more)
