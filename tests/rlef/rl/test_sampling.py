"""Which prompts an iteration takes."""

from __future__ import annotations

import pytest

from rlef.errors import UserError
from rlef.rl.sampling import take_prompts


def test_a_pass_takes_each_prompt_once_in_an_order_of_its_own():
    prompts = list(range(10))
    taken = [take_prompts(prompts, iteration, 3, seed=0) for iteration in range(6)]  # three pieces a pass, one prompt left out
    for first in (0, 3):
        whole = [prompt for piece in taken[first : first + 3] for prompt in piece]
        assert len(set(whole)) == 9
    assert taken[:3] != taken[3:]
    assert take_prompts(prompts, 1, 3, seed=0) == taken[1] != take_prompts(prompts, 1, 3, seed=1)  # in any order of asking
    with pytest.raises(UserError, match="11 are wanted"):
        take_prompts(prompts, 0, 11, seed=0)
