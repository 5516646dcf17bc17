"""vLLM as far as a sampler in the trainer's process sees it: modules of its names, and an engine that samples from a real model."""

from __future__ import annotations

import argparse
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import torch

from rlef.models import load_policy
from rlef.rollout import base
from rlef.rollout.hf import HFGenerator


class Engine:
    """vllm.LLM with the model in a folder. `did` is what it was told to do, `asked` the parameters of each generate, `loaded` names of weights.

    As vLLM on a CPU it computes with a copy of a tied head, made anew only when the head itself is loaded; as vLLM everywhere it reads a
    layer's weights when all of them are there.
    """

    made: ClassVar[list] = []
    faults: ClassVar[dict] = {}

    def __init__(self, args):
        if "fails" in self.faults:
            raise ValueError(self.faults["fails"])
        self.model = load_policy(args.model)
        self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())
        self.model_config = SimpleNamespace(max_model_len=args.max_model_len)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.did.append("shutdown")))
        self.args, self.did, self.asked, self.loaded = args, [], [], []
        Engine.made.append(self)

    @classmethod
    def from_engine_args(cls, args):
        return cls(args)

    def collective_rpc(self, method, kwargs):
        self.did.append(method)
        self.faults.get("load", lambda: None)()
        weights = list(kwargs["weights_iterator"])
        self.loaded = [name for name, _ in weights]
        assert not self.model.load_state_dict(dict(weights), strict=False).unexpected_keys

    def reset_prefix_cache(self):
        self.did.append("reset_prefix_cache")
        return self.faults.get("resets", True)

    def generate(self, prompts, params, use_tqdm):
        assert not use_tqdm
        self.did.append("generate")
        self.asked.append([dict(one) for one in params])
        answers = []
        for prompt, one in zip(prompts, params, strict=True):
            how = base.SamplingParams(one["max_tokens"], one["temperature"], tuple(one["stop_token_ids"]))
            request = base.SampleRequest(tuple(prompt["prompt_token_ids"]), (one["seed"],))
            (done,) = HFGenerator(self.model, 0).generate([request], how)
            held = [{token: SimpleNamespace(logprob=value)} for token, value in zip(done.tokens, done.logprobs, strict=True)]
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=list(done.tokens), logprobs=held)]))
        return answers

    def sleep(self, level):
        self.did.append(f"sleep {level}")

    def wake_up(self):
        self.did.append("wake_up")


class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model")
        parser.add_argument("--max-model-len", type=int, default=256)
        parser.add_argument("--enable-sleep-mode", action="store_true")
        for name in ("generation-config", "logprobs-mode", "dtype", "max-num-batched-tokens", "gpu-memory-utilization", "max-num-seqs"):
            parser.add_argument(f"--{name}")
        parser.add_argument("--no-enable-chunked-prefill", action="store_true")
        return parser

    @staticmethod
    def from_cli_args(parsed):
        return parsed


def modules(**faults):
    """By their names. `fails`: why the engine does not come up; `load`: what a reload does first; `resets`: of the prefix cache."""
    names = {
        "vllm": {"LLM": type("LLM", (Engine,), {"faults": faults}), "SamplingParams": dict},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": EngineArgs},
        "vllm.utils": {},
        "vllm.utils.argparse_utils": {"FlexibleArgumentParser": argparse.ArgumentParser},
    }
    found = {name: ModuleType(name) for name in names}
    for name, content in names.items():
        vars(found[name]).update(content)
    return found
