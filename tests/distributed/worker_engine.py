"""Two optimiser steps of two micro-batches on this rank's share; rank 0 writes the weights. argv: out, DeepSpeed JSON or -."""

import sys

import torch
from torch import nn

from rlef.engines import dist, make_engine

out, json_path = sys.argv[1], sys.argv[2]
dist.init("cpu")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
engine = make_engine(net, lr=1e-2, max_grad_norm=0.5, warmup_steps=0, device="cpu", deepspeed_json=None if json_path == "-" else json_path)
rows = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(1))
if dist.world() > 1:  # a discarded gradient must leave no trace
    engine.backward(engine.forward(rows[0]).square().sum(), last=True)
    engine.discard()
for step in range(2):
    # Unequal shares: rank 0 of two has 8 rows, rank 1 has 4, the last micro-batch of rank 1 is empty of weight.
    share = rows[step] if dist.world() == 1 else rows[step][:8] if dist.rank() == 0 else rows[step][8:]
    weights = torch.ones(len(share))
    pieces = [share[: len(share) // 2], share[len(share) // 2 :]]
    for number, piece in enumerate(pieces):
        engine.backward(engine.forward(piece).square().sum() / 12, last=number == 1)
    result = engine.step()
state = {name: value.detach().clone() for name, value in engine.full_parameters()}
if dist.is_main():
    torch.save({"state": state, "norm": result.grad_norm}, out)
dist.barrier()
