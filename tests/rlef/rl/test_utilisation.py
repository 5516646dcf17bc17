"""Operations of an update by hand on a configuration, the rate they are held against, and the tokens that count."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlef.planning.shapes import Decoder
from rlef.rl import utilisation
from rlef.rl.batch import RolloutBatch, columns, read_tokens
from rlef.rl.utilisation import Multiplied, matmul_rate

BODY, HEAD = 2 * (4 * 8 * 8 + 3 * 8 * 12 + 2 * 8) + 8, 20 * 8  # two layers and the last norm; the vocabulary


def model(tied):
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, tie_word_embeddings=tied))


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_are_only_read_do_not_count(tied):
    found = Multiplied.of(model(tied))
    assert found == Multiplied(BODY, HEAD)
    assert found.body + found.head * (1 if tied else 2) == Decoder.of(model(tied).config.to_dict()).parameters


def test_six_operations_a_parameter_and_token_and_the_head_on_answers_alone():
    found = Multiplied(BODY, HEAD)
    assert found.update_flops(10, 4) == 6 * 10 * BODY + 6 * (10 * BODY + 4 * HEAD)
    assert found.update_flops(10, 4, policy=False) == 6 * 10 * BODY


def test_the_rate_is_that_of_the_best_product_and_draws_nothing(monkeypatch):
    ticks = count()
    monkeypatch.setattr(utilisation.time, "perf_counter", lambda: float(next(ticks)))  # each product takes a second
    small, state = model(True), torch.get_rng_state()
    assert matmul_rate(small, torch.device("cpu"), torch.float32) == 2 * 512 * 8 * 12
    assert next(ticks) == 2 * utilisation.TRIES and torch.equal(torch.get_rng_state(), state)


def test_padding_is_no_token_and_a_shared_prompt_is_read_once():
    batch = RolloutBatch.of([(5, 6, 7), (5, 6, 7), (8,)], [(1, 2), (3,), (4, 4, 4, 4)], [[0.0] * n for n in (2, 1, 4)], range(3))
    assert read_tokens(batch, False) == 14 == columns(batch, 0, torch.device("cpu")).attention_mask.sum()
    assert read_tokens(batch, True) == 11
