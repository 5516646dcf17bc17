"""Does the planner predict what is there? Bytes of model states of PPO's policy on some ranks at ZeRO 0-3, and of saved activations.

    python scripts/planner.py [MODEL] [--engines torch 0 1 2 3] [--dtypes float32 bfloat16] [--ranks 2]

MODEL is a folder for from_pretrained; without it a Llama of a million parameters is made. Each engine takes an optimiser step and two
more micro-batches in forked processes; counted are all distinct tensor storages that live after a backward pass, at the most, less those
before the engine was made. Activations are counted with saved_tensors_hooks on one forward pass of policy and
critic. Prints a table and, as its last line, the same as JSON.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reward_models.ranks import free_port

PROMPT, ANSWER = 24, 8  # tokens of a row whose activations are counted
BUCKET = 2**16  # elements


def tensors() -> dict[int, int]:
    """Address -> bytes of every storage that lives, gradients included."""
    found: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    every += [one.grad for one in every if one.is_leaf and one.grad is not None]
    for tensor in every:
        storage = tensor.untyped_storage()
        if storage.device.type != "meta":
            found[storage.data_ptr()] = storage.nbytes()
    return found


def saved_bytes(module: nn.Module, *arguments: Any) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: list[torch.Tensor] = []  # held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(*arguments)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(count for place, count in storages.items() if place not in weights)


def micro_batch(rows: int, prompt: int = PROMPT, answer: int = ANSWER) -> Any:
    from rlef.rl.batch import RolloutBatch, columns

    batch = RolloutBatch.of([[3] * prompt] * rows, [[5] * answer] * rows, [[0.0] * answer] * rows, range(rows))
    return columns(batch, 0, torch.device("cpu"))


def load(model: str | None) -> Any:
    """In fp32."""
    from rlef.models import load_policy

    if model is not None:
        return load_policy(model)
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlef.config import RandomInit
    from rlef.planning.shapes import random_shape

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**random_shape(RandomInit())))


def measured_states(model: Any, engine: str, dtype: str, ranks: int) -> int:
    """Bytes on the main rank, at the most. `engine`: torch or a ZeRO stage. Ranks are forked: nothing is imported or loaded again."""
    forked = multiprocessing.get_context("fork")
    said = forked.SimpleQueue()
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        zero = {"stage": 0 if engine == "torch" else int(engine), "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0}
        file = Path(scratch, "deepspeed.json")
        file.write_text(json.dumps({"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "zero_optimization": zero}))
        places = [
            {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            for rank in range(ranks)
        ]
        json_path = None if engine == "torch" else str(file)
        processes = [forked.Process(target=_rank, args=(place, model, dtype, json_path, said)) for place in places]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{engine} {dtype}: a rank ended with code {[process.exitcode for process in processes]}")
    return said.get()


def _rank(place: dict[str, Any], model: Any, dtype: str, json_path: str | None, said: Any) -> None:
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["DS_ACCELERATOR"] = "cpu"
    from rlef.engines import dist, make_engine
    from rlef.rl.policy import TokenPolicy

    torch.set_num_threads(1)
    dist.init("cpu")
    module = TokenPolicy(model if dtype == "float32" else copy.deepcopy(model).to(getattr(torch, dtype)))
    whole = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    before = sum(count for address, count in tensors().items() if address not in whole)
    trained, most = make_engine(module, deepspeed_json=json_path, lr=1e-4), 0
    for number, last in enumerate((True, False, True)):
        logprobs, _ = trained.forward(micro_batch(1, 4, 4), 4)
        trained.backward(logprobs.sum() / 1000, last=last)
        del logprobs
        gc.collect()
        most = max(most, sum(tensors().values()) - before)
        if number == 0:
            trained.step()
    if dist.is_main():
        said.put(most)
    dist.barrier()
    os._exit(0)  # DeepSpeed's engines wait for each other at the end


def predicted_states(parameters: int, engine: str, dtype: str, ranks: int) -> float:
    from rlef.planning.memory import STATES, Zero, precision_of, trained

    zero = None if engine == "torch" else Zero(stage=max(int(engine), 1 if dtype == "bfloat16" else 0), bucket=BUCKET)
    precision = precision_of("engine", dtype, False, zero)
    parts = trained(parameters, precision, zero, ranks)
    kept = BUCKET * precision.weight if zero is not None and zero.stage == 3 else 0.0  # the one bucket that is never let go
    return sum(parts[name] for name in STATES) + kept


def activations(source: Any) -> list[dict[str, Any]]:
    """Measured and predicted, of policy and critic, two sizes of micro-batch, with and without checkpointing."""
    from rlef.planning.memory import classified, kept_logits, saved_activations
    from rlef.planning.shapes import Decoder
    from rlef.rl.policy import TokenCritic, TokenPolicy

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        source.save_pretrained(scratch)
        decoder = Decoder.of(source.config.to_dict())
        for bf16 in (False, True):
            nets = {"policy": TokenPolicy(source, bf16=bf16), "critic": TokenCritic.from_folder(scratch, bf16=bf16)}
            products = "autocast" if bf16 else "float32"
            for name, net in nets.items():
                inner: Any = net.model
                for checkpointing in (False, True):
                    net.train(checkpointing)
                    if checkpointing:
                        inner.gradient_checkpointing_enable({"use_reentrant": False})
                    for micro in (1, 4):
                        measured = saved_bytes(net, micro_batch(micro), ANSWER)
                        tokens = micro * (PROMPT + ANSWER)
                        predicted = saved_activations(decoder, tokens, products, checkpointing=checkpointing)
                        if name == "policy":
                            predicted += kept_logits(decoder, micro * ANSWER, products)
                        else:
                            predicted += classified(decoder, tokens, products)
                        what = f"{name}, {products}, {micro} rows" + (", checkpointed" if checkpointing else "")
                        rows.append({"what": what, "measured": measured, "predicted": predicted})
                inner.gradient_checkpointing_disable()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--engines", nargs="+", default=["torch", "0", "1", "2", "3"], choices=["torch", "0", "1", "2", "3"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    import deepspeed  # noqa: F401  (once, for all ranks)

    model = load(options.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for dtype in options.dtypes:
        for engine in options.engines:
            if (engine, dtype) == ("0", "bfloat16"):
                continue  # PPO's engine makes it ZeRO-1
            named = engine if engine == "torch" else f"ZeRO-{engine}"
            measured = measured_states(model, engine, dtype, options.ranks)
            predicted = predicted_states(parameters, engine, dtype, options.ranks)
            rows.append({"what": f"states, {named}, {dtype}", "measured": measured, "predicted": predicted})
            print(rows[-1], file=sys.stderr)
    rows += activations(model)
    print(f"| {'bytes':40} | {'measured':>14} | {'predicted':>14} | {'off':>7} |\n|{'-' * 42}|{'-' * 16}|{'-' * 16}|{'-' * 9}|")
    for row in rows:
        row["off"] = row["predicted"] / row["measured"] - 1
        print(f"| {row['what']:40} | {row['measured']:14,.0f} | {row['predicted']:14,.0f} | {row['off']:+7.1%} |")
    print(json.dumps({"parameters": parameters, "ranks": options.ranks, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
