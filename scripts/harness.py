"""Does lm-eval give a run's exported policy the pass@1 that the run measured, problem by problem?

    pip install -c constraints.txt '.[lm-eval]'
    python scripts/harness.py runs/quickstart            # the policy that was trained last; --stage ppo for another
    python scripts/harness.py runs/quickstart --best-of  # and 8 answers each: majority, vote weighted by the PRM, best of 8

It exports the policy, runs the tasks of configs/lm_eval on it in a process of its own, and sets the answers beside the run's. The last
line is JSON; the exit code is 1 where a greedy answer to a problem is graded otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlef.commands.export import chosen_stage, export
from rlef.config import EvaluateStage
from rlef.errors import UserError
from rlef.load_config import config_of
from rlef.models import load_tokenizer
from rlef.records import read_jsonl
from rlef.run_dir import RunDir
from rlef.stages.evaluate import Outcome

TASKS = Path(__file__).parents[1] / "configs" / "lm_eval"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory with a finished evaluate stage")
    parser.add_argument("--stage", help="the stage whose policy is evaluated (default: the last)")
    parser.add_argument("--best-of", action="store_true", help="also 8 answers each, on as many problems as the run's votes had")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    try:
        told = agreement(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(told))
    return int(told["graded_otherwise"] > 0)


def agreement(options: argparse.Namespace) -> dict[str, Any]:
    """pass@1 of both, and in how many problems they differ."""
    config, run = config_of(options.run), RunDir(options.run)
    stage = chosen_stage(config, run, "policy", options.stage)
    done = [(name, one) for name, one in config.stages.items() if isinstance(one, EvaluateStage) and run.manifest(name) is not None]
    name, settings = next(((name, one) for name, one in reversed(done) if one.path is None), ("", None))
    if settings is None or not (run.stage(name) / f"samples_{stage}.jsonl").is_file():
        raise UserError(f"{options.run}: no evaluation of {stage} on the run's own held-out problems", fix="run an evaluate stage first")
    ours = {row.problem_id: row for row in read_jsonl(run.stage(name) / f"samples_{stage}.jsonl", Outcome)}
    with TemporaryDirectory() as scratch:
        policy = Path(scratch, "policy")
        export(config, run, "policy", stage, policy)
        how = {"dtype": config.model.dtype, "system": config.model.system_prompt, "batch": options.batch_size}
        cold = f"max_gen_toks={settings.max_tokens}"
        rows = evaluated("rlef", policy, run.root, len(ours), Path(scratch, "greedy"), sampling=cold, **how)
        voted = []
        if options.best_of:
            warm = f"{cold},temperature={settings.temperature}"
            voted = evaluated("rlef_best_of", policy, run.root, settings.vote_count, Path(scratch, "votes"), sampling=warm, **how)
    theirs = {row["doc"]["id"]: (row["filtered_resps"][0], bool(row["exact_match"])) for row in rows}
    assert theirs.keys() == ours.keys()
    told = {
        "policy": stage,
        "problems": len(ours),
        "pass@1": sum(row.right for row in ours.values()) / len(ours),
        "lm_eval": sum(right for _, right in theirs.values()) / len(theirs),
        "other_words": sum(theirs[key][0].strip() != row.text.strip() for key, row in ours.items()),
        "graded_otherwise": sum(theirs[key][1] != row.right for key, row in ours.items()),
    }
    filters = sorted({row["filter"] for row in voted})
    return told | {one: _mean([row["exact_match"] for row in voted if row["filter"] == one]) for one in filters}


def evaluated(task: str, policy: Path, run: Path, count: int, out: Path, **how: Any) -> list[dict[str, Any]]:
    """The rows that lm-eval logs, one a problem and filter."""
    templated = load_tokenizer(policy).chat_template is not None
    model = f"pretrained={policy},dtype={how['dtype']},add_bos_token=False"
    words = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model]
    words += [
        "--include_path",
        str(TASKS),
        "--tasks",
        task,
        "--metadata",
        json.dumps({"run": str(run), "count": count, "plain": not templated}),
    ]
    words += ["--gen_kwargs", how["sampling"], "--batch_size", str(how["batch"])]
    words += ["--apply_chat_template"] if templated else []
    words += ["--system_instruction", how["system"]] if how["system"] and templated else []
    subprocess.run([*words, "--log_samples", "--output_path", str(out)], check=True, stdout=sys.stderr)
    (file,) = out.rglob("samples_*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    raise SystemExit(main())
