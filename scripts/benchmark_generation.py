"""Sampling in this process against `generate` of transformers: same policy, prompts, number of samples, longest answer and stop ids.

    python scripts/benchmark_generation.py POLICY PROMPTS.jsonl [--prompts 64] [--samples 8] [--max-tokens 64] [--batches 64 512] [--repeats 5]

POLICY: a stage or a model's folder; PROMPTS: problems, one a line. Both sides have the same number of rows decoded together, sample at
temperature 1 on one thread, and take turns; seconds are of processor time, so that a busy machine does not decide. transformers draws
other samples, so tokens a second are compared; it returns no log-probabilities, rlef does. Prints a table; the last line is a JSON object,
ratios with their spread under `speedup`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rlef.config import ModelSection
from rlef.models import load_policy, load_tokenizer, model_folder, prompt_ids, stop_ids
from rlef.records import Problem, read_jsonl
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator


def compare(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    samples: int,
    stops: Sequence[int],
    pad: int,
    *,
    batch: int,
    max_tokens: int,
    repeats: int,
) -> dict[str, list[float]]:
    """Tokens a second of `rlef` and of `transformers`, and their ratio `speedup`, a repeat each; after one of each that does not count."""
    found: dict[str, list[float]] = {"rlef": [], "transformers": [], "speedup": []}
    for repeat in range(repeats + 1):
        speeds = {}
        for name in ("rlef", "transformers") if repeat % 2 else ("transformers", "rlef"):
            began = time.process_time()
            if name == "rlef":
                requests = [SampleRequest(ids, (repeat, row, sample)) for row, ids in enumerate(prompts) for sample in range(samples)]
                done = HFGenerator(model, pad, batch).generate(requests, SamplingParams(max_tokens, 1.0, tuple(stops)))
                tokens = sum(len(one.tokens) for one in done)
            else:
                tokens = transformers_tokens(model, prompts, samples, stops, pad, batch=batch, max_tokens=max_tokens, seed=repeat)
            speeds[name] = tokens / (time.process_time() - began)
        if repeat:
            for name, value in speeds.items():
                found[name].append(value)
            found["speedup"].append(speeds["rlef"] / speeds["transformers"])
    return found


def transformers_tokens(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    samples: int,
    stops: Sequence[int],
    pad: int,
    *,
    batch: int,
    max_tokens: int,
    seed: int,
) -> int:
    """How many tokens `generate` sampled: prompts in order of length, `batch` rows a call."""
    torch.manual_seed(seed)
    ordered = sorted(prompts, key=len)
    together = max(1, batch // samples)
    tokens = 0
    for start in range(0, len(ordered), together):
        part = ordered[start : start + together]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in part])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part])
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=samples,
            max_new_tokens=max_tokens,
            eos_token_id=list(stops),
            pad_token_id=pad,
        )
        for row in output[:, width:]:
            stopped = torch.isin(row, torch.tensor(list(stops))).nonzero()
            tokens += int(stopped[0]) + 1 if len(stopped) else len(row)
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512], help="rows decoded together")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = model_folder(options.policy)
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    section = ModelSection(path=str(folder))
    problems = list(read_jsonl(options.problems, Problem))[: options.prompts]
    prompts = [tuple(prompt_ids(tokenizer, problem.question, section)) for problem in problems]
    stops, pad = stop_ids(tokenizer, model), int(tokenizer.pad_token_id)
    summary = {}
    print(f"{'rows together':>14}{'rlef':>10}{'transformers':>14}{'speedup':>9}   spread")
    for batch in options.batches:
        found = compare(model, prompts, options.samples, stops, pad, batch=batch, max_tokens=options.max_tokens, repeats=options.repeats)
        ratio = found["speedup"]
        medians = {name: statistics.median(values) for name, values in found.items()}
        print(
            f"{batch:>14}{medians['rlef']:>10,.0f}{medians['transformers']:>14,.0f}{medians['speedup']:>8.2f}x   {min(ratio):.2f} .. {max(ratio):.2f}"
        )
        summary[str(batch)] = {"speedup": medians["speedup"], "least": min(ratio), "most": max(ratio), "tokens_per_second": medians}
    print(json.dumps({"speedup": summary}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
