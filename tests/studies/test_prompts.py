"""Prompts of the figures and lists of prompts: in the words of captions, and read with care."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from companion.people.appearance import sample_person
from companion.people.caption import EXPRESSION_PHRASES, SCENE_PHRASES, STYLE_PHRASES, describe
from companion.people.outfit import ROLES
from companion.people.scenery import SCENES
from companion.people.view import EXPRESSIONS, STYLES, is_held_out, sample_view
from companion.studies.prompts import EXPRESSIONS as ASKED
from companion.studies.prompts import STYLES as PAINTED
from companion.studies.prompts import expression_prompts, read_pairs, style_prompts
from fusionlib.errors import FusionError
from fusionlib.profiles import ROOT

ROOT = ROOT
SUITE = ROOT / "data" / "prompts" / "suite.csv"
EVALUATION = ROOT / "data" / "prompts" / "evaluation.csv"


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


@pytest.fixture(scope="module")
def vocabulary() -> set[str]:
    """All words of the captions of a few hundred people."""
    return {
        word
        for index in range(400)
        for view in range(4)
        for word in words_of(describe(sample_person(0, index), sample_view(0, index, view)))
    }


def test_every_expression_and_style_can_be_asked_for_in_words_of_captions(
    vocabulary: set[str],
) -> None:
    assert tuple(ASKED) == EXPRESSIONS and tuple(PAINTED) == STYLES
    for prompt in expression_prompts(EXPRESSIONS) + style_prompts(STYLES):
        assert words_of(prompt) <= vocabulary
    for style, start in PAINTED.items():
        assert start in STYLE_PHRASES[style][0]
    with pytest.raises(FusionError, match="no style 'oil'"):
        style_prompts(["oil"])


def test_the_suite_asks_for_everything_equally_often_and_for_what_was_trained() -> None:
    with open(SUITE, newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["expression"] for row in rows) == dict.fromkeys(EXPRESSIONS, len(STYLES))
    assert Counter(row["style"] for row in rows) == dict.fromkeys(STYLES, len(EXPRESSIONS))
    assert len(set(Counter(row["scene"] for row in rows).values())) == 1
    assert {row["scene"] for row in rows} == set(SCENES)
    for row in rows:
        assert not is_held_out(row["style"], row["scene"], row["expression"])
        assert row["prompt"].startswith(PAINTED[row["style"]])
        assert ASKED[row["expression"]] in row["prompt"]
        assert any(row["prompt"].endswith(phrase) for phrase in SCENE_PHRASES[row["scene"]])


def test_a_hundred_pairs_are_drawable_varied_and_fit_their_people(vocabulary: set[str]) -> None:
    pairs = read_pairs(EVALUATION)
    prompts = [prompt for own in pairs.values() for prompt in own]
    assert len(pairs) == len(prompts) == len(set(prompts)) == 100
    assert all(words_of(prompt) <= vocabulary for prompt in prompts)
    for name, (prompt,) in pairs.items():
        person = sample_person(0, 1_000_000 + int(name))
        if words_of(prompt) & {"queen", "king"}:
            assert person.gender == ("woman" if "queen" in prompt else "man")
        if "beard" in prompt:
            assert person.beard == "short"
    said = Counter(word for prompt in prompts for word in words_of(prompt))
    for before, _ in EXPRESSION_PHRASES.values():
        assert sum(said[word] for word in set(before)) >= 2
    for role in ROLES[1:]:
        names = ("queen", "king") if role == "royal" else (role,)
        assert sum(said[name] for name in names) >= 4


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    assert read_pairs(EVALUATION, 2) == dict(list(read_pairs(EVALUATION).items())[:2])
    with pytest.raises(FusionError, match="100 pairs, fewer"):
        read_pairs(EVALUATION, 101)
    with pytest.raises(FusionError, match="person and prompt"):
        read_pairs(SUITE)
    with pytest.raises(FusionError, match=r"nothing.csv cannot be read \(No such file"):
        read_pairs(tmp_path / "nothing.csv")
    (tmp_path / "other.csv").write_text("person,words\nada,hello\n")
    with pytest.raises(FusionError, match="needs columns .*: it has no column 'prompt'"):
        read_pairs(tmp_path / "other.csv")
