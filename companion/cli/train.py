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
    designs = "designs"


MODULES = {
    Model.vae: "companion.embedded.vae",
    Model.clip: "companion.embedded.clip",
    Model.base: "companion.embedded.unet",
    Model.adapter: "fusionlib.training.adapter",
    Model.controlnet: "companion.embedded.controlnet",
    Model.identity: "companion.embedded.recogniser",
    Model.classifier: "companion.embedded.classifier",
    Model.method: "companion.methods.counterpart_training",
    Model.designs: "companion.methods.design_trainings",
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
            "changed; `designs` trains some of them several times, from five seeds and for two "
            "lengths."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            help="With `method`: which. Without a name, what there is, and how many parameters "
            "each would train. With `designs`: the only one to train.",
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
    seed: Annotated[
        int | None,
        typer.Option(
            help="With `method`: draws the samples and their order, their noise and dropouts, and "
            "the first weights of layers that do not begin as copies. With another seed than the "
            "profile's, the folder and the run are called `NAME-seed-N`.",
            show_default="the profile's",
        ),
    ] = None,
) -> None:
    """Train one of the models of a profile. A run that was stopped or killed goes on.

    The embedded profile's models are trained on rendered people, made by
    `fusionlib people render`. On several GPUs or machines, start the adapter through accelerate:

        accelerate launch -m fusionlib train adapter --profile paper

    To compare systems with nothing but their design different, each is trained over the same base
    model, on the same people, for the same number of steps:

        fusionlib train method ip-adapter --profile embedded

    How much of a difference is the luck of one training, several of them tell. The same command
    goes on until all are finished:

        fusionlib train designs --profile embedded_gpu --minutes 60
    """
    if minutes is not None and not minutes > 0:
        raise FusionError(f"The time limit must be more than 0 minutes, not {minutes}.")
    if steps is not None and steps < 1:
        raise FusionError(f"The number of steps must be 1 or more, not {steps}.")
    if start_from is not None and not start_from.is_dir():
        raise FusionError(f"--start-from names {start_from}, and there is no such folder.")
    if seed is not None and model is not Model.method:
        raise FusionError("--seed goes with `method`: all else takes the seed of its profile.")
    if seed is not None and not 0 <= seed < 2**63:
        raise FusionError(f"The seed {seed} is not a number from 0 to 2^63 - 1.")
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
            module.train_method(settings, name or "", options, seed=seed)
        return
    if model is Model.designs:
        left = module.train_designs(settings, name, options)
        for training in left:
            typer.echo(f"Not finished: {training.name}.")
        if left:
            typer.echo(f"{len(left)} trainings are left: the same command goes on with them.")
        return
    if name is not None:
        raise FusionError(f"A name goes with `method` or `designs`, not with `{model.value}`.")
    if encoder and (model is not Model.vae or start_from is None):
        raise FusionError("--encoder goes with `vae --start-from FOLDER`.")
    more: dict[str, Any] = {"encoder": True} if encoder else {}
    if model is Model.adapter:
        from companion.evaluation.training_monitor import make_monitor

        more["make_monitor"] = make_monitor
    module.train(settings, options, **more)
