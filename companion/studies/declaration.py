"""Studies declared in a file, before they are run: methods, people, prompts.

name: two-references
profile: embedded
methods:
  - text-only
  - {method: fused, strengths: [1]}
  - {method: fused, name: two references, strengths: [1, 1]}
people: {count: 20, references: 2, only: {style: photo}}
prompts: [a photo of a laughing person, a photo of an angry person]
seeds: 4
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from companion.methods import Method, Models, build_method
from companion.methods.groups import posed_like_the_next
from companion.person import Person, load_people
from companion.studies.prompts import read_pairs
from companion.studies.study import Study
from fusionlib.checks import check_sampling
from fusionlib.errors import FusionError, explain_validation
from fusionlib.profiles import FolderName, Settings, load_profile, resolve
from fusionlib.profiles.loading import check_picture_size
from fusionlib.support.paths import user_path
from fusionlib.support.texts import read_text
from fusionlib.support.yaml_text import load_yaml


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty: leave it out, or write something")
    return text


Filled = Annotated[str, AfterValidator(_filled)]
"""A name or a prompt, which says something."""


class MethodChoice(BaseModel):
    """A method by its name in `companion.methods.KNOWN`; every further entry is an option of it."""

    model_config = ConfigDict(extra="allow")

    method: str

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method, ``name`` among them."""
        return self.model_extra or {}

    @property
    def name(self) -> str:
        """Name of the method in tables."""
        return str(self.options.get("name", self.method))

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if not isinstance(name := self.options.get("name", ""), str):
            raise ValueError(f"the name {name!r} of a method is no text: put it in quotes")
        check_sampling(self.options, f"the method {self.name!r}")
        return self


def _by_name(entry: Any) -> Any:
    return {"method": entry} if isinstance(entry, str) else entry


class PeopleChoice(Settings):
    """The people to make pictures of: see `companion.person.load_people`.

    Attributes:
        folder: Folder of people; by default the held-out people of the profile.
        count: Number of people, the first ones, or of pairs in a list of pairs; by default all.
        references: Number of pictures of each that a method may see.
        others: Least number of further pictures of each, to measure against.
        only: Values that pictures must have in the folder's ``index.csv``.
        posed: Whether each person is posed like the next one, whose depth map lies beside the
            reference: see `companion.methods.groups.posed_like_the_next`.
        names: Names of people without pictures, in place of a folder.
    """

    folder: str | None = None
    count: int | None = Field(default=None, ge=1)
    references: int = Field(default=1, ge=0)
    others: int = Field(default=1, ge=0)
    only: dict[str, str] = Field(default_factory=dict)
    posed: bool = False
    names: list[Filled] = Field(default_factory=list)


class Declaration(Settings):
    """A study as its file declares it.

    Attributes:
        name: Name of the study's folder in the store.
        profile: Profile whose models are used.
        methods: Methods that are compared.
        people: People in the pictures.
        prompts: Prompts for everyone, or the file of a list of pairs of a person and a
            prompt, see `companion.studies.prompts.read_pairs`.
        seeds: Seeds of the noise, or their number, from 0.
        sampling: Arguments of the pipeline's call, over the profile's steps and guidance.
        dtype: Number type of the models.
        threads: Threads of the CPU for each picture; the same for any number of processes, so that
            they make the same pictures.
    """

    name: FolderName
    profile: str = "embedded"
    methods: list[Annotated[MethodChoice, BeforeValidator(_by_name)]] = Field(min_length=1)
    people: PeopleChoice = Field(default_factory=PeopleChoice)
    prompts: str | list[Filled] = Field(min_length=1)
    seeds: Annotated[int, Field(ge=1, le=100_000)] | Annotated[list[int], Field(min_length=1)] = 1
    sampling: dict[str, Any] = Field(default_factory=dict)
    dtype: str = "float32"
    threads: int = Field(default=1, ge=1)

    @field_validator("sampling")
    @classmethod
    def _sampled(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        check_sampling(sampling, "all methods")
        return sampling

    def study(self, device: str | None = None) -> Study:
        """Load what the study needs.

        Args:
            device: A torch device; by default a GPU if there is one.

        Raises:
            FusionError: A model, a method or a person is not there.
        """
        models = self._models(device)
        return self._study([self._build(entry, models) for entry in self.methods], models)

    def available(self, device: str | None = None) -> tuple[Study, dict[str, str]]:
        """Load what there is of what the study needs.

        Args:
            device: A torch device; by default a GPU if there is one.

        Returns:
            The study with those methods whose weights are there, and for each other the reason.

        Raises:
            FusionError: None of the methods, or a person, is there.
        """
        models = self._models(device)
        built, missing = [], {}
        for entry in self.methods:
            try:
                built.append(self._build(entry, models))
            except FusionError as error:
                missing[entry.name] = str(error)
        if not built:
            raise FusionError(next(iter(missing.values())))
        return self._study(built, models), missing

    def _models(self, device: str | None) -> Models:
        profile = load_profile(self.profile)
        sampling = profile.sampling | self.sampling
        for entry in self.methods:
            asked = self.sampling | entry.options
            base = asked.get("base_model", profile.base_model)
            check_picture_size(base, asked.get("height"), asked.get("width"))
        return Models(profile, device, self.dtype, self.threads, sampling)

    def _build(self, entry: MethodChoice, models: Models) -> Method:
        return build_method(entry.method, models, **entry.options)

    def _study(self, methods: list[Method], models: Models) -> Study:
        people = self._people(models.profile.heldout)
        prompts: list[str] | dict[str, list[str]]
        if isinstance(self.prompts, str):
            names = [person.name for person in people]
            prompts = read_pairs(resolve(self.prompts), self.people.count, names=names)
            people = [person for person in people if person.name in prompts]
        else:
            prompts = self.prompts
        return Study(
            self.name,
            methods,
            people,
            prompts,
            list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds,
            declaration=self.model_dump(mode="json"),
        )

    def _people(self, heldout: str | None) -> list[Person]:
        chosen = self.people
        if chosen.names:
            return [Person(name) for name in chosen.names]
        folder = resolve(chosen.folder) if chosen.folder else heldout
        if folder is None:
            raise FusionError(
                f"The profile {self.profile!r} brings no people: give the study's file "
                "people: {folder: ...}, a folder with an index.csv."
            )
        people = load_people(
            folder,
            chosen.count if isinstance(self.prompts, list) else None,
            references=chosen.references,
            others=chosen.others,
            only=chosen.only or None,
        )
        return posed_like_the_next(people) if chosen.posed else people


def load_models(profile: str | Path, **sampling: Any) -> Models:
    """The models of a profile, which methods load once when they first need them.

    Args:
        profile: Name of the profile, or its file.
        sampling: Arguments of the pipeline's call, over the profile's steps and guidance.
    """
    settings = load_profile(profile)
    return Models(settings, sampling=settings.sampling | sampling)


def resized(
    path: str | Path,
    *,
    profile: str,
    people: int | None = None,
    prompts: list[str] | None = None,
    seeds: int | None = None,
    **sampling: Any,
) -> Declaration:
    """Read a study's file and change its size, to that of a notebook for example.

    Args:
        path: File of the study.
        profile: Profile whose models are used instead.
        people: Number of its people, or of its pairs of a person and a prompt.
        prompts: Prompts for everyone, instead of its own.
        seeds: Number of seeds.
        sampling: Arguments of the pipeline's call that override the file's.
    """
    declared = load_declaration(path)
    count = declared.people.count if people is None else people
    return declared.model_copy(
        update={
            "profile": profile,
            "people": declared.people.model_copy(update={"count": count}),
            "prompts": declared.prompts if prompts is None else prompts,
            "seeds": declared.seeds if seeds is None else seeds,
            "sampling": declared.sampling | sampling,
        }
    )


def load_declaration(path: str | Path) -> Declaration:
    """Read a study's file.

    Raises:
        FusionError: There is no such file, or it does not fit the schema.
    """
    path = user_path(path)
    try:
        content = load_yaml(read_text(path))
        return Declaration.model_validate(content)
    except OSError as error:
        raise FusionError(f"There is no study file {path} ({error.strerror}).") from error
    except ValidationError as error:
        raise FusionError(
            f"The study file {path} does not fit at {explain_validation(error)} "
            "(`fusionlib study run --help` shows an example)."
        ) from error
    except (yaml.YAMLError, FusionError) as error:
        raise FusionError(f"The study file {path} is not YAML: {error}.") from error
