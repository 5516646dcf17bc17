"""Every policy on the same held-out problems: greedy accuracy, and at k samples pass@k, majority, PRM-weighted vote and best of k."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models import metrics
from reward_models.process import StepScores, aggregate
from reward_models.records import Candidate
from reward_models.statistics import paired_difference, pass_at_k, wilson
from rlef.answers import canonical, same_answer
from rlef.config import EvaluateStage
from rlef.models import decode, load_policy, load_tokenizer, model_folder, pick_device, prompt_ids, resolve_path, stop_ids
from rlef.prompts import split_answer
from rlef.records import Outcome, Problem, read_jsonl, write_jsonl
from rlef.rl.functions import GradeFunction
from rlef.rl.reward import ProcessScorer, judge
from rlef.rl.scorers import process_scorer
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.served import sampler
from rlef.run_dir import write_json
from rlef.sources import read_problems, with_answers
from rlef.stages.context import StageContext

STAGE_VERSION = 1
ITERATION = 2**31  # part of the noise key that no training iteration reaches


def run(ctx: StageContext) -> dict:
    """Writes results.json and samples_<policy>.jsonl; a finished policy's file is used again after an interruption."""
    settings: EvaluateStage = ctx.settings
    problems = _problems(ctx, settings)
    prm = process_scorer(settings.prm, ctx.inputs, ctx.config.launch.device)
    outcomes: dict[str, list[Outcome]] = {}
    for policy in _policies(ctx, settings):
        file = ctx.folder / f"samples_{policy.replace('/', '_')}.jsonl"
        if not file.is_file():
            write_jsonl(file, _answer(ctx, settings, policy, problems, prm))
        outcomes[policy] = list(read_jsonl(file, Outcome))
    results = {policy: summarise(rows, settings.k) for policy, rows in outcomes.items()}
    base = outcomes.get(settings.gain_over)
    if base is not None:
        for policy, rows in outcomes.items():
            if policy != settings.gain_over:
                gain = paired_difference([row.right for row in rows], [row.right for row in base])
                results[policy]["gain"] = {"over": settings.gain_over} | gain
    write_json(ctx.folder / "results.json", results)
    rows = [[policy, row["n"], row["pass@1"], *row["ci95"], row.get("gain", {}).get("mean")] for policy, row in results.items()]
    ctx.tracker.table("evaluation", ("policy", "n", "pass@1", "low", "high", f"gain over {settings.gain_over}"), rows)
    return results


def summarise(rows: Sequence[Outcome], k: int) -> dict[str, Any]:
    """Shares with their intervals, by depth; an answer that could not be found counts as wrong and is also counted apart."""
    right = sum(row.right for row in rows)
    depths: dict[int, list[bool]] = defaultdict(list)
    for row in rows:
        if row.depth is not None:
            depths[row.depth].append(row.right)
    result: dict[str, Any] = {
        "n": len(rows),
        "pass@1": right / len(rows),
        "ci95": list(wilson(right, len(rows))),
        "extraction_failures": sum(row.answer is None for row in rows) / len(rows),
        "unfinished": sum(not row.finished for row in rows) / len(rows),
        "by_depth": {str(depth): sum(depths[depth]) / len(depths[depth]) for depth in sorted(depths)},
    }
    sampled = [row for row in rows if row.sampled_right is not None]
    if sampled:
        result |= {
            f"pass@{k}": _share([pass_at_k(k, int(row.sampled_right or 0), k) for row in sampled]),
            f"majority@{k}": _share([bool(row.majority) for row in sampled]),
            "sampled_pass@1": _share([int(row.sampled_right or 0) / k for row in sampled]),
            "vote_n": len(sampled),
        }
        if sampled[0].prm_vote is not None:
            if unjudged := sum(row.unjudged or 0 for row in sampled):
                result["prm_unjudged"] = unjudged
            result |= {
                f"prm_vote@{k}": _share([bool(row.prm_vote) for row in sampled]),
                f"best_of_{k}": _share([bool(row.best) for row in sampled]),
            }
            result["prm_vote_minus_majority"] = paired_difference(
                [bool(row.prm_vote) for row in sampled], [bool(row.majority) for row in sampled]
            )
    return result


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _problems(ctx: StageContext, settings: EvaluateStage) -> list[Problem]:
    if settings.path is not None:
        problems = read_problems(Path(settings.path))[0]
    else:
        problems = read_jsonl(ctx.inputs["problems"] / "held_out.jsonl", Problem)
    return with_answers(problems, settings.path or str(ctx.inputs["problems"]))[: settings.count]


def _policies(ctx: StageContext, settings: EvaluateStage) -> dict[str, tuple[str, str | None]]:
    """Name -> (folder, GGUF file)."""
    named = {
        key.removeprefix("policy:"): (str(model_folder(folder)), None) for key, folder in ctx.inputs.items() if key.startswith("policy:")
    }
    model = ctx.config.model
    base = {"base": (resolve_path(model.path), model.gguf_file)} if model.path is not None else {}
    if settings.policies is None:
        return base | named
    known = base | named
    return {policy: known.get(policy, (policy, None)) for policy in settings.policies}


def _answer(
    ctx: StageContext, settings: EvaluateStage, policy: str, problems: Sequence[Problem], prm: ProcessScorer | GradeFunction | None
) -> list[Outcome]:
    """Answers of one policy to all problems, graded."""
    folder, gguf = _policies(ctx, settings)[policy]
    section = ctx.config.model
    tokenizer = load_tokenizer(folder, gguf_file=gguf, trust_remote_code=section.trust_remote_code)
    model = load_policy(
        folder,
        dtype=section.dtype,
        gguf_file=gguf,
        trust_remote_code=section.trust_remote_code,
        device=pick_device(ctx.config.launch.device),
    )
    stops = stop_ids(tokenizer, model)
    prompts = [tuple(prompt_ids(tokenizer, problem.question, section)) for problem in problems]
    server, pad = settings.servers.get(policy), int(tokenizer.pad_token_id)
    generator = sampler(model, pad, settings.batch_size, server=server, folder=folder, prompt=prompts[0])
    with ctx.tracker.progress(f"{ctx.name}: {policy}", len(problems) + settings.k * min(settings.vote_count, len(problems))) as advance:
        greedy = generator.generate([SampleRequest(ids) for ids in prompts], SamplingParams(settings.max_tokens, 0.0, stops), advance)
        voters = problems[: settings.vote_count]
        requests = [
            SampleRequest(prompts[place], (ctx.seed, ITERATION, int(problem.id, 16), sample))
            for place, problem in enumerate(voters)
            for sample in range(settings.k)
        ]
        sampled = generator.generate(requests, SamplingParams(settings.max_tokens, settings.temperature, stops), advance)
    texts = [decode(tokenizer, one.tokens, stops) for one in sampled]
    read = [split_answer(text, section) for text in texts]
    judged: Sequence[StepScores | None] = []
    if prm is not None and read:
        questions = [voters[place // settings.k].question for place in range(len(read))]
        answers = [answer for _, answer in read]
        judged = judge(prm, questions, [steps for steps, _ in read], answers, [None] * len(read), settings.batch_size)
    weights = [aggregate(one.scores) if one is not None else 0.0 for one in judged or [None] * len(read)]
    outcomes = []
    for place, (problem, one) in enumerate(zip(problems, greedy, strict=True)):
        text = decode(tokenizer, one.tokens, stops)
        answer = split_answer(text, section)[1]
        outcome = Outcome(
            problem_id=problem.id, depth=problem.depth, text=text, answer=answer, right=_is_right(answer, problem), finished=one.finished
        )
        if place < len(voters):
            group = slice(place * settings.k, (place + 1) * settings.k)
            answers = [canonical(answer, problem.question) if answer is not None else None for _, answer in read[group]]
            candidates = tuple(
                Candidate(_is_right(answer, problem), score, answer) for answer, score in zip(answers, weights[group], strict=True)
            )
            votes: dict[str, Any] = {
                "candidates": candidates,
                "sampled_right": sum(one.correct for one in candidates),
                "majority": _is_right(metrics.majority_vote(answers), problem),
            }
            if prm is not None:
                votes["prm_vote"] = _is_right(metrics.weighted_vote(answers, weights[group]), problem)
                votes["best"] = _is_right(metrics.best_of(answers, weights[group]), problem)
                votes["unjudged"] = sum(one is None for one in judged[group])
            outcome = outcome.model_copy(update=votes)
        outcomes.append(outcome)
    return outcomes


def _is_right(answer: str | None, problem: Problem) -> bool:
    return answer is not None and same_answer(answer, str(problem.answer), problem.question)


def read_results(folder: Path) -> dict[str, Any]:
    file = folder / "results.json"
    return json.loads(file.read_text()) if file.is_file() else {}
