"""From the notebooks to the book: run what changed, export the results, build the pages.

Every notebook is run by papermill into ``build/executed``, and the book is built from the executed
copies. Outputs stored in the notebooks in git (`companion.publishing.stored_outputs`) play no part.
A notebook is run again only when something that can change its output changed: its own text, the
sources of fusionlib and companion, the data and weights, the profile or the lock file, or a
notebook that it comes after. These are compared by content, never by time.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from companion.publishing.book import build_book, check_build, publish_manifest
from companion.publishing.notebooks import (
    choose_notebooks,
    comes_after,
    find_notebooks,
    fit_parameters,
    run_notebook,
)
from companion.publishing.preflight import check_ready
from companion.publishing.tasks import Stage, cores, default_jobs, read_stamp, run_in_order
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Profile, load_profile
from fusionlib.support.files import locked, short, write_text
from fusionlib.support.provenance import manifest, sha256_file, sha256_folder, sha256_json


def reproduce(
    profile: str = "embedded",
    *,
    out: str | Path = Path("build"),
    only: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    book: bool | None = None,
    jobs: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    root: Path = ROOT,
) -> Path:
    """Run every notebook under a profile, export its results and build the book from them.

    A notebook that the profile leaves out is not run, and the book goes without it.

    A notebook that fails stops no other. The book is built all the same, and the failed page says
    what happened.

    Args:
        profile: Name of a profile in ``fusionlib/profiles``, or the path of a profile's YAML file.
        out: Folder for everything that is built. What the notebooks generate goes to ``study/``,
            the executed notebooks to ``executed/``, their figures and tables to ``exports/``, the
            pages to ``book/``, and ``manifest.json``, there too, says what they were made from.
        only: Names of notebooks, or beginnings that only one notebook has; by default all.
        parameters: Values for every notebook that declares them, over those of the profile.
        book: Whether to build the book; by default if all notebooks are run.
        jobs: Number of notebooks to run at once; see `companion.publishing.tasks.default_jobs`.
        force: Whether to run and build everything even if nothing changed.
        dry_run: Whether to only say what would be run and whether its needs are met, see
            `companion.publishing.preflight`.
        root: Root of the repository to reproduce.

    Returns:
        The book's first page; without a book, the folder of the executed notebooks.

    Raises:
        FusionError: A name or parameter is unknown or, in a dry run, something is missing. If
            notebooks failed or the book did not build: names each with its failing cell, once
            everything else is done.
    """
    out = Path(out).resolve()
    root = Path(root).resolve()
    jobs = default_jobs() if jobs is None else jobs
    if jobs < 1:
        raise FusionError(f"--jobs must be 1 or more, not {jobs}.")
    book = not only if book is None else book
    settings = load_profile(profile)
    if Path(profile).is_file():  # the notebooks run in another folder
        profile = str(Path(profile).resolve())
    notebooks, after = _in_the_book(root, settings, only)
    chosen = {path.stem: path for path in choose_notebooks(notebooks, only)}
    given = fit_parameters(list(chosen.values()), settings.parameters, parameters or {})
    if dry_run:
        check_ready(settings, chosen, given)
        return out / "executed"
    check_build(out, root)
    inputs = _shared_inputs(root, settings)
    labels = [f"[{number}/{len(chosen) + book}]" for number in range(1, len(chosen) + book + 1)]
    label_of = dict(zip(chosen, labels, strict=False))
    started = time.perf_counter()

    def run(name: str, before: Mapping[str, Stage | FusionError]) -> Stage:
        known = {other: before.get(other) or read_stamp(out, other) for other in after[name]}
        return run_notebook(
            chosen[name],
            {"profile": profile, **given[name]},
            out,
            inputs,
            after={n: s.digest if isinstance(s, Stage) else "no result" for n, s in known.items()},
            force=force,
            progress=jobs == 1,
            label=f"{label_of[name]} {chosen[name].relative_to(root)}",
        )

    order = {name: [other for other in after[name] if other in chosen] for name in chosen}
    if jobs > 1:
        order = _longest_first(order, out, root)
    with locked(out / "executed"), _environment(_offline(inputs) | _threads(jobs)):
        ran = run_in_order(order, run, jobs=jobs)
    outcomes = {name: ran[name] for name in chosen}
    stages = [stage for stage in outcomes.values() if isinstance(stage, Stage)]
    failed = {name: str(error) for name, error in outcomes.items() if not _done(error)}
    problems = list(failed.values())
    if book:
        label = f"{labels[-1]} book"
        try:
            built = build_book(
                out,
                root=root,
                force=force,
                partial=bool(only),
                left_out=settings.left_out,
                label=label,
            )
            stages.append(built)
        except FusionError as error:
            problems.append(str(error))

    others = [n.stem for n in notebooks if n.stem not in chosen] + ([] if book else ["book"])
    stages += [stage for name in others if (stage := read_stamp(out, name))]
    record = manifest(
        profile=profile,
        files=inputs,
        stages=[vars(stage) for stage in stages],
        failed=failed,
    )
    write_text(out / "manifest.json", json.dumps(record, indent=2) + "\n")
    publish_manifest(out)
    exported = [short(out / "exports" / name) for name in outcomes if _done(outcomes[name])]
    print(f"figures and tables: {', '.join(exported) or 'none'}")
    print(f"what it was made from: {short(out / 'manifest.json')}")
    if problems:
        summary = f"{len(failed)} of {len(chosen)} notebooks failed. " if failed else ""
        raise FusionError(summary + "\n".join(problems))
    print(f"done in {time.perf_counter() - started:.0f} s", end="; ")
    if not book:
        print("executed: " + ", ".join(short(out / "executed" / p.name) for p in chosen.values()))
        return out / "executed"
    page = out / "book" / "index.html"
    print(f"open the book: {page.as_uri()}")
    return page


def _in_the_book(
    root: Path, profile: Profile, only: Sequence[str]
) -> tuple[list[Path], dict[str, list[str]]]:
    """The notebooks that a profile runs, and those that each of them comes after.

    Raises:
        FusionError: One that is left out was asked for by name, or there is none of that name.
    """
    notebooks = find_notebooks(root)
    names = {path.stem for path in notebooks}
    left_out = {name: why for name, why in profile.left_out.items() if name in names}
    asked = choose_notebooks(notebooks, only) if only else []
    for name in (path.stem for path in asked if path.stem in left_out):
        raise FusionError(f"The profile {profile.name!r} leaves {name} out: {left_out[name]}.")
    kept = [path for path in notebooks if path.stem not in left_out]
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    return kept, {
        name: [other for other in others if other not in left_out]
        for name, others in comes_after(notebooks).items()
        if name not in left_out
    }


def _longest_first(order: Mapping[str, list[str]], out: Path, root: Path) -> dict[str, list[str]]:
    """The same tasks, so that no long one begins when the others are through.

    What is known is how long each took here or, on a fresh machine, where the book's record of a
    reproduction was made.
    """
    from companion.pages.benchmark_records import find_results

    try:
        records = find_results(root / "book" / "records" / "benchmarks", "whole")
    except FusionError:
        records = []  # damaged: its page says so
    stages = [group for record in records for group in record.groups if group.unit == "minutes"]
    known = {row.name: 60 * row.values[-1] for group in stages for row in group.rows}
    known |= {name: stamp.seconds for name in order if (stamp := read_stamp(out, name))}
    return {name: order[name] for name in sorted(order, key=lambda n: -known.get(n, math.inf))}


def _done(outcome: Stage | FusionError) -> bool:
    return isinstance(outcome, Stage)


def _shared_inputs(root: Path, profile: Profile) -> dict[str, str]:
    """Content hashes of everything besides itself that a notebook's output can depend on.

    The sources, the data, the lock file and the profile; of the folders that the profile names, the
    hash of one that lies outside ``data/``, and of models the name of one that comes from a hub.
    """
    files = [root / "requirements.lock"]
    kinds = (".py", ".yaml", ".js", ".css")
    for package in ("fusionlib", "companion"):
        files += [f for f in (root / package).rglob("*") if f.suffix in kinds]
    files += [f for f in (root / "data").rglob("*") if f.is_file()]
    inputs = {f.relative_to(root).as_posix(): sha256_file(f) for f in sorted(files) if f.exists()}
    inputs["profile"] = sha256_json(profile.model_dump(mode="json"))
    named = ("base_model", "adapter", "clip_model", "controlnet", "classifier")
    models = {field: getattr(profile, field) for field in named}
    others = {field: getattr(profile, field) for field in ("counterparts", "heldout", "groups")}
    others |= {f"recogniser {name}": name for name in profile.recognisers}  # or DeepFace's
    for field, name in {**models, **others}.items():
        if name is None:
            continue
        if Path(name).is_dir():
            if root / "data" not in Path(name).resolve().parents:
                inputs[f"folder:{field}"] = sha256_folder(name)
        elif field in models:
            inputs[f"hub:{field}"] = name
    return inputs


def _offline(inputs: Mapping[str, str]) -> dict[str, str]:
    """Without a model from a hub there is nothing to ask a hub for: say so to its client."""
    from_hub = any(name.startswith("hub:") for name in inputs)
    return {} if from_hub else {"HF_HUB_OFFLINE": "1"}


def _threads(jobs: int) -> dict[str, str]:
    """Notebooks that run side by side share the cores, unless somebody decided otherwise."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(cores() // jobs, 1))}


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which the notebooks' kernels inherit, for a while."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
