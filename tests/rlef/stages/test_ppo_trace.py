"""How busy an iteration keeps the device is logged, and a trace of one is written where it is wanted; neither changes what is learned."""

from __future__ import annotations

import gzip
import json

import pytest
from safetensors.torch import load_file

from rlef.config import Config, PpoStage
from rlef.rl.utilisation import Multiplied
from rlef.stages import ppo
from rlef.stages.context import StageContext
from rlef.tracking import Tracker


def run(folder, inputs, **more):
    stage = PpoStage(iterations=3, prompts_per_iteration=4, samples_per_prompt=2, max_tokens=12, critic_warmup=1, minibatches=2, **more)
    config = Config.model_validate({"model": {"random": {}}, "stages": {"ppo": stage.model_dump()}})
    folder.mkdir()
    ppo.run(StageContext("ppo", config, stage, inputs, folder, Tracker("ppo", folder / "metrics.jsonl", quiet=True)))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_trace_is_written_and_utilisation_logged(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(ppo, "matmul_rate", lambda *_: 1e12)
    monkeypatch.setattr(ppo.Multiplied, "of", lambda _: Multiplied(1000, 100))
    plain, traced = run(tmp_path / "plain", inputs), run(tmp_path / "traced", inputs, profile=True)
    for row in plain:
        tokens, answers, seconds = row["optim/tokens"], row["optim/answer_tokens"], row["time/update"]
        assert answers == row["rollout/tokens"] and tokens > answers
        assert row["perf/update_tokens_per_second"] == pytest.approx(tokens / seconds)
        policy = 6 * (1000 * tokens + 100 * answers) if row["step"] > 1 else 0  # the first trains the critic alone
        assert row["perf/mfu"] == pytest.approx((6 * 1000 * tokens + policy) / (seconds * 1e12))

    assert not (tmp_path / "plain" / "trace.json.gz").exists() and len(traced) == 3
    with gzip.open(tmp_path / "traced" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert [names.count(phase) for phase in ("rollout", "reward", "forward", "update")] == [1] * 4 and "aten::mm" in names
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "traced")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
