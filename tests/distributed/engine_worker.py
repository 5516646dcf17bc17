"""Two optimiser steps of two micro-batches on every engine, alone or under torchrun: `torchrun engine_worker.py OUT NAME[:OTHER]...`.

NAME is "torch", a ZeRO stage ("0".."3"), a stage with bf16 weights ("2-bf16") or in DeepSpeed's fp16 mode ("2-fp16"), a shipped file
("zero2_offload"), or any of them behind which another word keeps apart what it writes ("2-alone"). OTHER is one whose checkpoint it goes on
from too. The main process writes OUT/NAME.pt.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHIPPED = Path(__file__).parents[2] / "configs" / "deepspeed"
STEPS, MICRO_BATCHES, RANKS, ROWS = 2, 2, 2, 2  # rows: of one micro-batch
SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "max_grad_norm": 0.5, "warmup_steps": 2}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and loss mask, (steps, micro-batches, ranks, rows, length). Rank 1 has no token in its last micro-batch."""
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, MICRO_BATCHES, RANKS, ROWS, 12)
    ids = torch.randint(2, 50, shape, generator=generator)
    mask = (torch.rand(shape, generator=generator) < 0.5).float()
    mask[:, -1, 1] = 0
    return ids, mask


def loss_sum(module: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood summed over the marked tokens."""
    logits = module(input_ids=ids).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * mask[:, 1:].flatten()).sum()


def reference() -> dict[str, object]:
    """Brute force: all rows of a step in one batch, plain AdamW."""
    module = model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, betas=SETTINGS["betas"], weight_decay=SETTINGS["weight_decay"])
    norms = []
    for number, (ids, mask) in enumerate(zip(*data(), strict=True)):
        (loss_sum(module, ids.flatten(0, 2), mask.flatten(0, 2)) / mask[..., 1:].sum()).backward()
        norms.append(math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in module.parameters())))
        for weight in module.parameters():
            weight.grad *= min(1.0, SETTINGS["max_grad_norm"] / norms[-1])
        optimizer.param_groups[0]["lr"] = SETTINGS["lr"] * (number + 1) / 2
        optimizer.step()
        optimizer.zero_grad()
    return {"norms": norms, "weights": {name: weight.detach() for name, weight in module.named_parameters()}}


def train(engine, steps, poison: float = 1.0, finish: bool = True) -> list:
    from rlef.engines import dist

    results = []
    for ids, mask in [(data()[0][step], data()[1][step]) for step in steps]:
        mine = [(micro, rank) for micro in range(MICRO_BATCHES) for rank in range(dist.rank(), RANKS, dist.world())]
        for micro, rank in mine:
            loss = loss_sum(engine.forward, ids[micro, rank], mask[micro, rank]) / mask[..., 1:].sum()
            # The gradient of one rank is broken, as one bad row would do it.
            engine.backward(loss * (poison if rank == 0 else 1.0), last=(micro, rank) == mine[-1])
        results.append(engine.step() if finish else engine.discard())
    return results


def run(name: str, other: str, out: Path) -> dict[str, object]:
    from deepspeed.accelerator import get_accelerator

    from rlef.engines import dist, make_engine
    from rlef.engines.deepspeed_engine import full_state

    stage, _, variant = name.partition("-")
    path = None
    if stage != "torch":
        path = str(out / f"{name}.json")
        settings = {"train_batch_size": "auto", "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
        settings["zero_optimization"] = {"stage": int(stage)} if stage.isdigit() else {}
        if not stage.isdigit():
            settings = json.loads((SHIPPED / f"{stage}.json").read_text())
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # so small a model would not be divided
        if variant == "fp16":
            settings["fp16"] = {"enabled": True, "initial_scale_power": 8}
            get_accelerator().is_fp16_supported = lambda: True  # a CPU is slow at it, not wrong
        if dist.is_main():
            Path(path).write_text(json.dumps(settings))
        dist.barrier()

    def engine():
        return make_engine(model().bfloat16() if variant == "bf16" else model(), deepspeed_json=path, **SETTINGS)

    def same(one, other) -> bool:
        left, right = full_state(one.module), full_state(other.module)
        return all(torch.equal(left[key], right[key]) for key in left)

    whole = engine()
    norms = [result.grad_norm for result in train(whole, [0, 1])]
    weights = full_state(whole.module)
    walked = {key: value.detach().clone() for key, value in whole.full_parameters()}
    whole.save_model(out / f"{name}-model")

    # Forgotten and broken gradients leave no trace.
    disturbed = engine()
    train(disturbed, [1], finish=False)
    train(disturbed, [0])
    broken = train(disturbed, [0], poison=float("nan"))[0]
    train(disturbed, [1])

    # Saved after one step, loaded into a fresh engine.
    half = engine()
    train(half, [0])
    half.save(out / f"{name}-checkpoint")
    resumed = engine()
    resumed.load(out / f"{name}-checkpoint")
    train(resumed, [1])
    crossed = engine()
    if other:
        crossed.load(out / f"{other}-checkpoint")
        train(crossed, [1])
    return {
        "crossed": full_state(crossed.module),
        "norms": norms,
        "weights": weights,
        "walked": walked,
        "broken": (broken.skipped, broken.grad_norm),
        "undisturbed": same(whole, disturbed),
        "resumed": same(whole, resumed),
        "gathered": dist.all_gather_object(dist.rank()),
        "told": dist.broadcast_object(dist.rank()),
    }


def main(out: Path, names: list[str]) -> None:
    from rlef.engines import dist

    torch.set_num_threads(1)
    dist.init("cpu")
    for name, _, other in (one.partition(":") for one in names):
        result = run(name, other, out)
        if dist.is_main():
            torch.save(result, out / f"{name}.pt")
    dist.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
