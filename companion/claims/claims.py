"""Claims of the paper: what it says, where, and what would decide it.

The claims stand in ``data/paper/claims.yaml``, below the smallest effects of interest. What was
found on them is `companion.claims.evidence`'s, and the rule that judges it is in
`companion.claims.rule`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from companion.claims.rule import Answer, Asks
from companion.entries import read_entries
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT, Profile

CLAIMS = ROOT / "data" / "paper" / "claims.yaml"

Better = tuple[str, str | list[str]]
"""A method that a claim says is better, and the other one; of several others, each of them."""

Recogniser = Literal["first", "last", "each"]


class Effect(BaseModel):
    """The smallest effect of interest in a unit: a difference below it changes nobody's choice.

    Attributes:
        unit: Unit of a claim's number.
        smallest: The effect; where `of` is ``gap``, as a share of the way from another person's
            picture to the person's own, under the recogniser that measures.
        of: What it is a share of, if anything.
        because: Why this and not less or more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: str = Field(min_length=1)
    smallest: float = Field(gt=0)
    of: Literal["gap"] | None = None
    because: str = Field(min_length=1)


class Expected(BaseModel):
    """The verdict that a profile's present weights give, and from how many people on.

    Attributes:
        verdict: What was found.
        people: Number of people below which "undecided" is no contradiction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Answer
    people: int = Field(ge=2)


class Claim(BaseModel):
    """One claim of the paper.

    The number that decides it is either the difference of a `pair` of methods, or the mean of one
    method (`mean_of`), or else is computed by the experiment itself.

    Attributes:
        id: Name used in file names: small letters, digits and hyphens.
        title: The claim in a few words of our own.
        text: The claim in the paper's words, or in ours.
        words: Whose words `text` is in.
        section: Section of the paper that makes it.
        decided_by: The number that decides it, in words.
        asks: Whether the number has to be more than the threshold, no less, or as much: see
            `companion.claims.rule.answer`.
        pair: The better method and the other one, or several others of which each is compared; or
            one such pair for each profile, by the profile's name.
        baseline: A second pair, whose difference is subtracted from that of the first.
        mean_of: The method whose mean decides.
        metric: A column of the measured pictures, ``recovery`` of identity, ``spread`` of a
            person's distances, ``accepted`` by the recogniser, ``followed`` for a face and the
            whole prompt, ``shown`` for these and the person, or ``likeness`` of the `traits`.
        against: What distances lead to: what the study measured (its references), or pictures of
            the person that no method saw.
        traits: Traits that count for ``likeness``; all of them by default.
        recogniser: Which of the profile's recognisers measures distances, the first, the last, or
            each of them; or one for each profile.
        only: The only prompts whose pictures count.
        without: A prompt whose pictures do not count.
        unit: Unit of that number.
        over: What was averaged over: people, unless it says otherwise.
        threshold: Value that the number is compared with.
        smallest: Smallest effect of interest, where it is not that of the unit.
        study: Name of the study whose pictures decide it, or one for each profile. An experiment
            that records the claim from another study fails.
        designs: Whether it is about designs, of which each network is one training.
        experiment: What measures it: a notebook (without its extension), a study's file or a
            benchmark, from the repository's root; or one for each profile, by the profile's name.
            None where there is none yet.
        expected: What was found under a profile, by the profile's name: see
            `companion.claims.evidence.check_claims`.
        obstacle: Why it cannot be tested under a profile, by the profile's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str = Field(min_length=1)
    text: str = Field(min_length=1)
    words: Literal["the paper's", "ours"]
    section: str
    decided_by: str = Field(min_length=1)
    asks: Asks = "more"
    pair: Better | dict[str, Better] | None = None
    baseline: tuple[str, str] | None = None
    mean_of: str | None = None
    metric: str = "distance"
    against: Literal["reference", "unseen"] = "reference"
    traits: list[str] | None = None
    recogniser: Recogniser | dict[str, Recogniser] = "first"
    only: list[str] | None = None
    without: str | None = None
    unit: str
    over: str = "people"
    threshold: float = 0.0
    smallest: float | None = Field(default=None, ge=0)
    study: str | dict[str, str] | None = None
    designs: bool = False
    experiment: str | dict[str, str] | None = None
    expected: dict[str, Expected] = Field(default_factory=dict)
    obstacle: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        if self.experiment is None and not self.obstacle:
            raise ValueError("needs the experiment that tests it, or the obstacle to one")
        if both := self.expected.keys() & self.obstacle.keys():
            raise ValueError(f"cannot be both expected and untestable under {', '.join(both)}")
        if self.pair and self.mean_of:
            raise ValueError("is decided by a pair of methods or by the mean of one, not by both")
        if self.asks != "more" and self.threshold:
            raise ValueError("asks for no less or as much, which is told by `smallest` alone")
        return self

    def tested_by(self, profile: str) -> str | None:
        """What measures it under a profile, if anything does."""
        experiment: str | None = under(profile, self.experiment)
        return experiment

    def decided_on(self, profile: str) -> str | None:
        """Name of the study that decides it under a profile, if it is tied to one."""
        study: str | None = under(profile, self.study)
        return study

    @property
    def quotation(self) -> str:
        """The text, in quotation marks if the words are the paper's."""
        return f"“{self.text}”" if self.words == "the paper's" else self.text


def under(profile: str, value: Any) -> Any:
    """What holds under a profile, where there may be one value for each."""
    return value.get(profile) if isinstance(value, dict) else value


def read_claims(path: str | Path = CLAIMS) -> dict[str, Claim]:
    """All claims by id, in the file's order.

    Raises:
        FusionError: The file cannot be read, or a claim in it does not fit; names both.
    """
    return read_entries(path, Claim, "claim", "id", part="claims")


def read_effects(path: str | Path = CLAIMS) -> dict[str, Effect]:
    """The smallest effects of interest by unit, in the file's order.

    Raises:
        FusionError: The file cannot be read, or an effect in it does not fit; names both.
    """
    return read_entries(path, Effect, "effect", "unit", part="smallest_effects")


def claims_under(profile: Profile, path: str | Path = CLAIMS) -> dict[str, Claim]:
    """All claims as they stand under a profile.

    A claim whose page is left out of the profile's book cannot be tested, for the same reason.

    Raises:
        FusionError: See `read_claims`.
    """
    claims = {}
    for name, claim in read_claims(path).items():
        page = Path(claim.tested_by(profile.name) or "").name
        why = profile.left_out.get(page)
        obstacle = ({profile.name: why} if why else {}) | claim.obstacle
        claims[name] = claim.model_copy(update={"obstacle": obstacle})
    return claims


def find_claim(claim: str, path: str | Path = CLAIMS) -> Claim:
    """One claim by its id.

    Raises:
        FusionError: There is no claim with that id.
    """
    claims = read_claims(path)
    if claim not in claims:
        raise FusionError(f"There is no claim {claim!r} in {path}: it has {', '.join(claims)}.")
    return claims[claim]
