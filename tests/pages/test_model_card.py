"""The model card's prompts: some of the suite's, in every style that they have."""

import pandas as pd

from companion.pages.model_card import PROMPTS, choose_suite_prompts


def test_prompts_are_spread_over_the_suite_and_sorted_by_what_they_ask_for() -> None:
    listed = pd.read_csv(PROMPTS)
    whole = choose_suite_prompts(len(listed))
    assert whole.all == list(listed["prompt"]) and set(whole.styles) == set(listed["prompt"])
    assert {whole.styles[prompt] for prompt in whole.photos} == {"photo"}
    others = [whole.styles[prompt] for prompt in whole.others]
    assert len(set(others)) == len(others) == listed["style"].nunique() - 1
    few = choose_suite_prompts(8)
    assert 8 <= len(few.all) < len(listed) and few.all[0] == whole.all[0]
    assert few.styles == whole.styles and set(few.photos) <= set(few.all)
