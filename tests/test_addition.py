"""30: PPO on sums of two-digit numbers with an exact verifier in the PRM's place: accuracy rises; paid by the step it writes more steps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rlef.answers import extract_answer
from rlef.config import Config, ModelSection
from rlef.models import decode, load_policy, load_tokenizer, prompt_ids, stop_ids
from rlef.records import Problem, problem_id, write_jsonl
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.stages import ppo, sft
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

pytestmark = pytest.mark.slow
VERIFIER = """
def exact(question, steps, answer, gold):
    a, b = (int(number) for number in question.split("+"))
    units = a % 10 + b % 10
    tens = a // 10 + b // 10 + units // 10
    right = {f"{a % 10}+{b % 10}={units}", f"{a // 10}+{b // 10}+{units // 10}={tens}", f"#### {a + b}"}
    return [float(step in right) for step in steps]


others = [1.0]


def shuffled(question, steps, answer, gold):
    others.append(min(exact(question, steps, answer, gold)))
    return others[-2]
"""
TINY = {"vocab_size": 300, "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128, "max_positions": 128}
SFT = {"kind": "sft", "data": "seeds", "max_steps": 520, "eval_every": 520, "batch_size": 64, "micro_batch_size": 64, "learning_rate": 3e-3}
PPO = {
    "kind": "ppo", "irm": "none", "prompts_per_iteration": 32, "samples_per_prompt": 4, "max_tokens": 64, "minibatches": 4,
    "critic_warmup": 2, "policy_lr": 1e-4, "critic_lr": 1e-3, "lr_warmup": 0, "kl_coef": 0.01,
}  # fmt: skip


def sums(count: int) -> list[Problem]:
    """With solutions in which the first step may be said twice or more, as a policy must have seen that can learn to."""
    rng, rows = random.Random(0), []
    for a, b in rng.sample([(a, b) for a in range(10, 100) for b in range(10, 100)], count):
        units = a % 10 + b % 10
        first = f"{a % 10}+{b % 10}={units}"
        steps = (*[first] * rng.choice((1, 1, 1, 2, 3)), f"{a // 10}+{b // 10}+{units // 10}={a // 10 + b // 10 + units // 10}")
        rows.append(Problem(id=problem_id(f"{a}+{b}"), question=f"{a}+{b}", solution=steps, answer=str(a + b)))
    return rows


SEEN, PRACTISED, HELD_OUT = (sums(2600)[part] for part in (slice(1600), slice(1600, 2200), slice(2200, 2600)))


def stage(module, folder: Path, inputs: dict[str, Path], settings: dict, seed: int = 0) -> Path:
    data = {"run": {"seed": seed}, "model": {"random": TINY}, "stages": {settings["kind"]: settings}, "launch": {"device": "cpu"}}
    config = Config.model_validate(data)
    folder.mkdir(parents=True)
    module.run(StageContext(folder.name, config, config.stages[settings["kind"]], inputs, folder, Tracker.null()))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A policy that has learned half of it from examples, and what it practises on."""
    folder = tmp_path_factory.mktemp("sums")
    write_jsonl(folder / "problems" / "seeds.jsonl", SEEN)
    write_jsonl(folder / "prompts" / "prompts.jsonl", PRACTISED)
    (folder / "verifier.py").write_text(VERIFIER)
    return {"init": stage(sft, folder / "sft", {"problems": folder / "problems"}, SFT), "prompts": folder / "prompts"}


@pytest.fixture(scope="module")
def start(inputs):
    return measured(inputs["init"])


@pytest.fixture
def trained(inputs, tmp_path):
    """trained(seed, mode, iterations, verifier) -> what is measured of the policy after PPO."""

    def run(seed: int, mode: str, iterations: int, verifier: str = "exact") -> tuple[float, float]:
        prm = f"{inputs['prompts'].parent / 'verifier.py'}:{verifier}"
        return measured(stage(ppo, tmp_path / mode, inputs, PPO | {"reward_mode": mode, "iterations": iterations, "prm": prm}, seed))

    return run


def measured(folder: Path) -> tuple[float, float]:
    """Share of right answers to sums that were never seen, sampled as they are when it learns, and lines an answer."""
    tokenizer, policy = load_tokenizer(folder / "model"), load_policy(folder / "model")
    stops = stop_ids(tokenizer, policy)
    asked = [SampleRequest(tuple(prompt_ids(tokenizer, row.question, ModelSection())), (int(row.id, 16),)) for row in HELD_OUT]
    done = HFGenerator(policy, int(tokenizer.pad_token_id)).generate(asked, SamplingParams(PPO["max_tokens"], 1.0, stops))
    texts = [decode(tokenizer, one.tokens, stops) for one in done]
    right = [one.finished and extract_answer(text) == row.answer for one, text, row in zip(done, texts, HELD_OUT, strict=True)]
    return sum(right) / len(right), sum(len(text.splitlines()) for text in texts) / len(texts)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_30_accuracy_rises_and_only_a_sum_of_step_rewards_breeds_steps(start, trained, seed):
    """Measured: 47 % right and 3.6 lines at the start, 77 to 80 % and 3.0 after; by the sum 4.9 to 5.1 lines."""
    accuracy, steps = start
    learned, kept = trained(seed, "running_min_delta", 24)
    _, grown = trained(seed, "step_sum", 12)
    assert 0.2 < accuracy < 0.8 and learned > accuracy + 0.15
    assert grown > steps + 1 and kept < steps + 0.3


def test_30_rewards_of_other_answers_teach_nothing(start, trained):
    """Measured with three seeds: 33, 38 and 47 % right after."""
    learned, _ = trained(0, "running_min_delta", 24, "shuffled")
    assert learned < start[0] + 0.05
