"""8: one rank and two have the same gradient in each optimiser step, with unequal counts, and with nothing to judge on one of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.distributed import comparing
from tests.distributed.gradient_worker import KINDS, STEP_ROWS, gradients
from tests.reward_models.conftest import byte_level, policy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a policy, and of what two ranks found."""
    start, out = tmp_path_factory.mktemp("policy"), tmp_path_factory.mktemp("two")
    tokenizer = byte_level()
    policy(tokenizer).save_pretrained(start)
    tokenizer.save_pretrained(start)
    comparing.start("gradient_worker.py", 2, start, out)
    return start, out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_8_two_ranks_have_the_gradient_of_one(folders, kind):
    start, out = folders
    alone, counts = gradients(kind, start, STEP_ROWS, 1)
    assert alone.dtype == np.float64 and len(alone) == 2 and np.abs(alone).max() > 1e-4
    for micro_batch in (4, 2):
        ranks = [np.load(out / f"{kind} {micro_batch} {rank}.npz") for rank in range(2)]
        assert sum(int(rank["counts"].sum()) for rank in ranks) == sum(counts)
        for rank in ranks:
            assert np.abs(rank["gradients"] - alone).max() < 1e-10
        if kind == "prm" and micro_batch == 4:  # one rank has the short rows, with nothing to judge, and the other all the steps
            assert min(rank["counts"].sum() for rank in ranks) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_8_rows_that_ranks_cannot_share_evenly_are_not_repeated(folders, kind):
    """Five rows in micro-batches of two on two ranks: without blank rows three of them would count twice."""
    start, out = folders
    alone, counts = gradients(kind, start, STEP_ROWS, 1, left_out=3)
    ranks = [np.load(out / f"{kind} uneven {rank}.npz") for rank in range(2)]
    assert sum(int(rank["counts"].sum()) for rank in ranks) == sum(counts) and np.abs(alone).max() > 1e-4
    for rank in ranks:
        assert np.abs(rank["gradients"] - alone).max() < 1e-10
