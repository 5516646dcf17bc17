"""What a Trainer that goes on finds again: on several ranks, in a later epoch, the rows that are left of it."""

from __future__ import annotations

import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from torch.utils.data import BatchSampler
from transformers import Trainer

from reward_models.data import SortedSteps
from reward_models.resuming import Resumable


@pytest.mark.parametrize("rank", [0, 1])
def test_an_epoch_that_is_gone_on_with_keeps_its_order_on_every_rank(rank, monkeypatch):
    def loader(trainer):
        shard = BatchSamplerShard(BatchSampler(SortedSteps([1] * 16, 4, seed=0), 2, drop_last=False), num_processes=2, process_index=rank)
        return DataLoaderShard(list(range(16)), batch_sampler=shard)

    def rows(loaded, epoch):
        loaded.set_epoch(epoch)
        return [batch.tolist() for batch in loaded]

    monkeypatch.setattr(Trainer, "get_train_dataloader", loader)
    trainer = object.__new__(Resumable)
    first, second = (rows(loader(trainer), epoch) for epoch in (0, 1))
    assert first != second
    assert rows(skip_first_batches(trainer.get_train_dataloader(), 1), 1) == second[1:]
