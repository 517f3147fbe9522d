"""How the committed models were trained: what ``fusionlib train`` wrote beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from pandas.io.formats.style import Styler
from PIL import Image
from safetensors import safe_open

from companion.figures.display import VectorFigure, with_alt_text
from companion.figures.style import MEASURED
from companion.figures.tables import marked_table
from fusionlib.errors import FusionError

FOLDERS = {
    "vae_quarter": "vae",
    "vae_half": "vae",
    "vae": "vae",
    "clip": "clip",
    "clip_images": "clip",
    "base": "unet",
    "adapter": "adapter",
    "controlnet": "controlnet",
    "identity": "identity",
    "classifier": "classifier",
}
"""The folder of each model in a checkpoint, in the order of training; the judges last."""

JUDGES = ("identity", "classifier")
"""Models that take no part in generation."""

_QUANTITIES = {
    "vae_quarter": "weighted L1 with edges, and KL",
    "vae_half": "weighted L1 with edges, and KL",
    "vae": "weighted L1 with edges",
    "clip": "contrastive loss, and words",
    "clip_images": "contrastive loss",
    "base": "squared error of v, weighted",
    "adapter": "the same, with the reference",
    "controlnet": "the same, with the depth map",
    "identity": "ArcFace's loss",
    "classifier": "cross-entropies, summed",
}

_COLUMNS = 3
"""Panels of loss curves beside each other."""


def trained_methods(folder: str | Path) -> dict[str, str]:
    """The compared systems and ablations whose trainings are on record, for the functions below.

    Args:
        folder: The profile's ``counterparts``, where `fusionlib train method` puts its weights.

    Returns:
        For each of them, by name, its folder in there; nothing where none was trained.
    """
    names = sorted(path.stem for path in (Path(folder) / "training").glob("*.json"))
    return {name: name for name in names}


def training_table(checkpoint: str | Path, folders: Mapping[str, str] = FOLDERS) -> Styler:
    """One row a model: size, length and machine of its training, as recorded by the run itself.

    Args:
        checkpoint: Folder with ``training/*.json`` and the models' folders.
        folders: Runs to show, each with the folder of its model in the checkpoint.

    Returns:
        Indexed by run: parameters in millions, of which some may be frozen zeros, those that were
        trained, where the run recorded it, file in megabytes (the three runs of the autoencoder
        end in one file), samples, samples that the weights it began with had seen, steps, minutes,
        and the loss as the mean over the last tenth of the run. The caption names the machine.

    Raises:
        FusionError: A record is missing.
    """
    rows, machines = {}, set()
    for model, folder in folders.items():
        run = json.loads(_record(checkpoint, model, "json").read_text("utf-8"))
        log = pd.read_csv(_record(checkpoint, model, "csv"))
        files = sorted((Path(checkpoint) / folder).rglob("*.safetensors"))
        rows[model] = {
            "parameters, M": f"{sum(_parameters(file) for file in files) / 1e6:.2f}",
            "trained, M": f"{run['parameters'] / 1e6:.2f}" if "parameters" in run else "–",
            "file, MB": f"{sum(file.stat().st_size for file in files) / 1e6:.1f}",
            "samples": run["samples"],
            "samples before": run.get("samples_before", 0),
            "steps": run["steps"],
            "minutes": f"{run['seconds'] / 60:.1f}",
            "loss": f"{log['loss'].tail(max(len(log) // 10, 1)).mean():.3f}",
        }
        machines.add(run["machine"])
    table = pd.DataFrame.from_dict(rows, orient="index")
    caption = f"Recorded by the runs, on {'; '.join(sorted(machines))}."
    return marked_table(table, caption, kind=None)


def training_hours(checkpoint: str | Path) -> str:
    """Wall-clock hours of the runs that ended in a checkpoint's weights, judges left out.

    Returns:
        The sum with one digit after the point; "unknown" for published weights, which come without
        such records.
    """
    folder = Path(checkpoint) / "training"
    if not folder.is_dir():
        return "unknown"
    models = [model for model in FOLDERS if model not in JUDGES]
    runs = [json.loads(_record(checkpoint, model, "json").read_text("utf-8")) for model in models]
    return f"{sum(run['seconds'] for run in runs) / 3600:.1f}"


def loss_curves(checkpoint: str | Path, runs: Iterable[str] = FOLDERS) -> Image.Image:
    """The loss curves: each logged value pale, a running mean on top.

    Args:
        checkpoint: Folder with ``training/*.csv``.
        runs: Runs to draw, at least one.

    Raises:
        FusionError: A record is missing, or there is no run.
    """
    models = list(runs)
    if not models:
        raise FusionError(f"{checkpoint} keeps no record of a training: there is no loss to draw.")
    lines = -(-len(models) // _COLUMNS)
    figure = Figure(figsize=(3 * _COLUMNS, 3.0 * lines), layout="constrained", dpi=110)
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    words = []
    for axes, model in zip(panels, models, strict=False):
        log = pd.read_csv(_record(checkpoint, model, "csv"))
        smooth = log["loss"].rolling(25, min_periods=1, center=True).mean()
        axes.plot(log["samples"], log["loss"], color=MEASURED, alpha=0.25, linewidth=0.8)
        axes.plot(log["samples"], smooth, color=MEASURED, linewidth=1.8)
        low, high = np.quantile(log["loss"], [0.0, 0.98])
        axes.set(
            title=model,
            xlabel="samples seen",
            ylabel=_QUANTITIES.get(model, "squared error of v, weighted"),
        )
        axes.set_ylim(low - 0.05 * (high - low), high)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(EngFormatter())  # long numbers would run into each other
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        seen = f"{log['samples'].iloc[-1]:,} samples"
        words.append(f"{model} from {smooth.iloc[0]:.3g} to {smooth.iloc[-1]:.3g} over {seen}")
    return with_alt_text(
        VectorFigure(figure), f"Training losses, one panel each: {'; '.join(words)}."
    )


def _record(checkpoint: str | Path, model: str, kind: str) -> Path:
    path = Path(checkpoint) / "training" / f"{model}.{kind}"
    if not path.is_file():
        raise FusionError(
            f"{path} is missing: `fusionlib train {model}` writes it when it ends; "
            "a published checkpoint has none"
        )
    return path


def _parameters(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        return sum(
            int(np.prod(tensors.get_slice(name).get_shape()))
            for name in tensors.keys()  # noqa: SIM118 (safe_open is no mapping)
        )
