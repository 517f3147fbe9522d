"""Checks, before a run of hours begins, that everything a profile's notebooks need is there.

Models that come from a hub are looked for in its cache, and else on the hub, by one file of each.
The judges are loaded, which downloads DeepFace's weights, so that they cannot be missing later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from companion.publishing.notebooks import declared_parameters
from fusionlib.errors import FusionError
from fusionlib.profiles import Profile
from fusionlib.profiles.loading import adapter_of, check_model
from fusionlib.support.paths import user_path

PICTURES = 2
"""Pictures of each person that a notebook needs: a reference, and another to measure by. Its
metadata can name another number: ``{"fusionlib": {"pictures": 6}}``."""


def check_ready(
    profile: Profile, notebooks: Mapping[str, Path], given: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print what would be run with which parameters, and check that the profile has what it needs.

    Args:
        profile: Profile whose models, judges and people are checked.
        notebooks: Notebooks that would be run, by name.
        given: Parameters that each would be given.

    Raises:
        FusionError: Something is missing; each thing was printed, with what to do about it.
    """
    declared = {name: declared_parameters(path) for name, path in notebooks.items()}
    for name in notebooks:
        handed = ", ".join(f"{key}={value!r}" for key, value in given[name].items())
        print(f"would run: {name}" + (f" ({handed})" if handed else ""))
    # One that brings a profile of its own asks nothing of this one.
    asking = {
        name: declared[name] | dict(given[name])
        for name in notebooks
        if "profile" not in given[name]
    }
    systems: dict[str, list[str]] = {}
    for name, values in asking.items():
        of_study = _declared_systems(notebooks[name])
        for system in [*values.get("methods", []), *of_study]:
            systems.setdefault(system, []).append(name)
    for system, pages in systems.items():
        for problem in _problems(partial(_check_trained, system, profile)):
            print(f"without {system}: {', '.join(pages)}. {problem}")

    checks = [*_models(profile), *_judges(profile)]
    checks.append(partial(_check_people, profile, _needs(notebooks, asking)))
    if any("num_groups" in values for values in asking.values()):
        checks.append(partial(_check_groups, profile))
    missing = list(_problems(*checks))
    for problem in missing:
        print(f"missing: {problem}")
    if missing:
        raise FusionError(
            f"The profile {profile.name!r} is not ready: {len(missing)} thing(s) are missing, "
            "named above."
        )
    print("everything is there: the same command without --dry-run begins")


def _problems(*checks: Callable[[], object]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except FusionError as error:
            yield str(error)


def _models(profile: Profile) -> Iterator[Callable[[], object]]:
    yield partial(_check_model, profile.base_model, "model_index.json", "base model")
    hint = f" `fusionlib train adapter --profile {profile.name}` makes it."
    yield partial(_check_model, adapter_of(profile), "config.json", "adapter", hint)
    yield partial(_check_model, profile.clip_model, "config.json", "CLIP model")
    for name, what in ((profile.classifier, "classifier"), (profile.controlnet, "ControlNet")):
        if name is not None:
            yield partial(_check_model, name, "config.json", what)


def _check_model(name: str, file: str, what: str, hint: str = "") -> None:
    """Check that a model is a folder, in the hub's cache, or on the hub."""
    from huggingface_hub import file_exists, try_to_load_from_cache

    try:
        check_model(name, file=file, what=what)
    except FusionError as error:
        raise FusionError(f"{error}{hint}") from error
    if user_path(name).is_dir() or isinstance(try_to_load_from_cache(name, file), str):
        return
    try:
        there = file_exists(name, file)
    except Exception as error:  # no network, no permission, or offline mode
        raise FusionError(
            f"The {what} {name} is not in the hub's cache, and the hub cannot be asked for it "
            f"({type(error).__name__}): run `hf download {name}` where there is a network, with "
            "HF_HOME in a folder that this machine sees."
        ) from error
    if not there:
        raise FusionError(f"The {what} {name} has no {file} on the hub: name another one.")
    print(f"{what}: {name} will be downloaded")


def _judges(profile: Profile) -> Iterator[Callable[[], object]]:
    from PIL import Image

    from companion.faces.aligned import find_face
    from companion.faces.recognisers import load_recogniser

    yield partial(find_face, Image.new("RGB", (256, 256)), profile.detector)
    for name in profile.recognisers:
        yield partial(load_recogniser, name)


def _declared_systems(notebook: Path) -> list[str]:
    """The methods of the study that a notebook runs: ``{"fusionlib": {"study": FILE}}``."""
    import nbformat

    from companion.studies.declaration import load_declaration

    file = nbformat.read(notebook, as_version=4).metadata.get("fusionlib", {}).get("study")
    if file is None:
        return []
    return [entry.method for entry in load_declaration(notebook.parent / file).methods]


def _check_trained(system: str, profile: Profile) -> None:
    from companion.methods.counterparts import trained_options

    trained_options(system, profile, {})


def _needs(
    notebooks: Mapping[str, Path], values: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[int, int]]:
    """How many people each notebook asks for, and how many pictures of each."""
    import nbformat

    needs = {}
    for name, own in values.items():
        if "num_people" in own:
            metadata = nbformat.read(notebooks[name], as_version=4).metadata
            pictures = metadata.get("fusionlib", {}).get("pictures", PICTURES)
            needs[name] = (int(own["num_people"]), int(pictures))
    return needs


def _check_people(profile: Profile, needs: Mapping[str, tuple[int, int]]) -> None:
    """Count the held-out people who have as many pictures as are asked for."""
    from companion.person import load_people

    load_people(profile.heldout, only={"style": "photo"})  # whether that column is there
    short = []
    for name, (people, pictures) in needs.items():
        found = len(load_people(profile.heldout, others=pictures - 1))
        if people > found:
            short.append(
                f"{name} asks for {people} people with {pictures} pictures each, of whom "
                f"{profile.heldout} has {found}"
            )
    if short:
        raise FusionError(f"{'; '.join(short)}: add some, or ask for fewer with -p num_people=...")


def _check_groups(profile: Profile) -> None:
    if profile.groups is None or not (Path(profile.groups) / "index.csv").is_file():
        raise FusionError(f"The profile {profile.name!r} has no pictures of groups: add `groups:`.")
    if profile.controlnet is None:
        raise FusionError(f"The profile {profile.name!r} names no ControlNet: add `controlnet:`.")
