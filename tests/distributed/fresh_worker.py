"""One PPO stage on this rank's share, under one engine after another; argv: folder of the results, of the policy, file of the prompts, then
engines: "torch", or DeepSpeed JSONs by path. Rank 0 leaves weights, log and every sampled answer in NAME.pt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlef.config import Config
from rlef.engines import dist
from rlef.rl.reward import RewardFunction
from rlef.rl.sampling import sample_answers
from rlef.stages import ppo
from rlef.stages.context import StageContext
from rlef.tracking import Tracker
from tests.rlef.stages.conftest import score_by_tokens

STAGE = {
    "kind": "ppo", "iterations": 3, "prompts_per_iteration": 5, "samples_per_prompt": 2, "micro_batch_size": 2, "max_tokens": 12, "critic_warmup": 1,
    "minibatches": 2, "policy_lr": 1e-3, "lr_warmup": 0, "target_kl": None, "kl_target": 0.5, "irm": "none",
    "prm": f"{Path(__file__).parents[2] / 'configs' / 'rewards' / 'exact_match.py'}:grade",  # its scores are replaced
}  # fmt: skip


def learn(folder: Path, start: Path, prompts: Path, deepspeed: str | None):
    """Weights, rows of the log, and answers by iteration, prompt and sample."""
    answers = {}

    def watched(*arguments, iteration, **options):
        sampled = sample_answers(*arguments, iteration=iteration, **options)
        answers.update({f"{iteration} {prompt.problem.id} {index}": answer.tokens for prompt, index, answer in sampled})
        return sampled

    ppo.sample_answers = watched
    launch = {"device": "cpu", "deepspeed": deepspeed}
    config = Config.model_validate({"model": {"random": {}}, "launch": launch, "stages": {"ppo": STAGE}})
    folder.mkdir(exist_ok=True)
    log = folder / "metrics.jsonl"
    tracker = Tracker("ppo", log, quiet=True) if dist.is_main() else Tracker.null()
    ppo.run(StageContext("ppo", config, config.stages["ppo"], {"init": start, "prompts": prompts}, folder, tracker))
    every = {key: answer for one in dist.all_gather_object(answers) for key, answer in one.items()}
    if not dist.is_main():
        return None
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    told = [{name: value for name, value in row.items() if not name.startswith(("time", "perf", "stage"))} for row in rows]
    return load_file(folder / "model" / "model.safetensors"), told, every


if __name__ == "__main__":
    out, start, prompts = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    dist.init("cpu")
    RewardFunction.score = lambda self, problems, completions: [score_by_tokens(completion) for completion in completions]
    for engine in sys.argv[4:]:
        name = Path(engine).stem
        learned = learn(out / name, start, prompts, None if engine == "torch" else engine)
        if dist.is_main():
            torch.save(learned, out / f"{name}.pt")
    dist.barrier()
