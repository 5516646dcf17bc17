"""A tiny real model and tokenizer for every test that needs one; one torch thread, so that sums come out in one order."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy one takes more than 200 ms for an example
settings.load_profile("any machine")

TEXTS = [
    f"Ann has {a} pens. Ben has {b} more. How many pens does Ben have?\nBen {a}+{b}={a + b}\n#### {a + b}"
    for a in range(9)
    for b in range(9)
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole runs, which take longest, first: two processes that take file after file then end at the same time."""
    items.sort(key=lambda item: len(item.path.parts))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_spec():
    from rlef.config import RandomInit

    return RandomInit(vocab_size=320, hidden_size=64, layers=2, heads=2, intermediate_size=96, max_positions=256)


@pytest.fixture
def tiny(tiny_spec):
    """(model, tokenizer): a fresh random Llama of 2 layers, dropout off, weights large enough that outputs differ."""
    import torch

    from rlef.models import random_policy

    model, tokenizer = random_policy(tiny_spec, TEXTS, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model, tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tiny_spec, tmp_path_factory):
    """The same kind of model, saved."""
    from rlef.models import random_policy, save_policy

    model, tokenizer = random_policy(tiny_spec, TEXTS, seed=0)
    folder = tmp_path_factory.mktemp("tiny")
    save_policy(model, tokenizer, folder)
    return folder
