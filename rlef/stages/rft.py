"""Best-of-n distillation: sample n answers a prompt, keep the best by the learned reward, fine-tune on it. The simple baseline of RL."""

from __future__ import annotations

import math

from rlef.config import RftStage
from rlef.engines import dist
from rlef.errors import UserError
from rlef.models import load_policy, load_tokenizer, model_folder
from rlef.rl.pairs import best_samples
from rlef.stages.context import StageContext
from rlef.stages.sampled import ScoredSampler
from rlef.stages.sft import Example, fine_tune

STAGE_VERSION = 2


def run(ctx: StageContext) -> dict:
    """Train the policy of `init` on its own best answers. Writes model/."""
    settings: RftStage = ctx.settings
    dist.init(ctx.config.launch.device)
    start, trust = model_folder(ctx.inputs["init"]), ctx.config.model.trust_remote_code
    samples = ScoredSampler(ctx, settings, start).answers()
    chosen = best_samples(samples, min_reward=settings.min_reward)
    if not chosen:
        raise UserError(f"{ctx.name}: no answer reached min_reward={settings.min_reward}", fix="lower it, or sample more answers a prompt")
    examples = [Example(sample.prompt.ids, sample.completion.tokens) for sample in chosen]
    steps = max(1, math.ceil(settings.epochs * len(examples) / settings.batch_size))
    model = load_policy(start, dtype=ctx.config.model.dtype, trust_remote_code=trust)
    tokenizer = load_tokenizer(start, trust_remote_code=trust)
    result = fine_tune(ctx, settings, model, tokenizer, examples, [], prefix="rft", max_steps=steps, eval_every=25, patience=None)
    return result | {"rows": len(examples), "masked": sum(sample.score.masked for sample in samples)}
