"""What the front page shows beside the verdicts."""

import re

from companion.pages.front_page import recorded_trade_off
from fusionlib.profiles import load_profile


def test_the_front_page_draws_the_record_with_words_and_says_where_there_is_none() -> None:
    drawn = recorded_trade_off(load_profile("embedded")).data
    alt = re.search(r'alt="([^"]+)"', drawn)
    assert alt and "strength" in alt[1] and "fused" in alt[1] and "image/jpeg" in drawn
    paper = load_profile("paper")
    assert "has not been measured under the profile paper" in repr(recorded_trade_off(paper))
