"""The reward as TRL calls it: equal to the reward models' own scores, for texts and for messages, and in a real GRPOTrainer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from reward_models.config import ProcessModelConfig
from reward_models.instruction import Calibration, InstructionRewardModel, save_calibration
from reward_models.model import build
from reward_models.process import SETTINGS, ProcessRewardModel
from rlef.config import Config, ModelSection
from rlef.errors import UserError
from rlef.models import save_policy
from rlef.rl.trl_reward import TrlReward
from rlef.run_dir import RunDir

QUESTION = "Ann has 3 pens. Ben has 4 more. How many?"
STEPS = ["Ben 3+4=7", "#### 7"]
ANSWER = "Ben 3+4=7\n#### 7"


@pytest.fixture(scope="module")
def judges(tiny_folder, tmp_path_factory):
    """Untrained reward models, their heads large enough that scores differ."""
    folders = {}
    for kind, name in (("instruction", "irm"), ("process", "prm")):
        folders[name] = tmp_path_factory.mktemp("run") / name
        torch.manual_seed(1)
        model, tokenizer = build(kind, tiny_folder, separator="<|step|>" if name == "prm" else None)
        with torch.no_grad():
            model.score.weight.mul_(30)
        save_policy(model, tokenizer, folders[name] / "model")
    save_calibration(Calibration((-0.5, 0.0, 0.5), 1.0, 0.05, 64), folders["irm"] / "model")
    (folders["prm"] / "model" / SETTINGS).write_text(ProcessModelConfig(max_length=96).model_dump_json())
    return folders


@pytest.fixture(scope="module")
def expected(judges):
    """r_I and the step scores, as the models themselves give them."""
    prm, irm = ProcessRewardModel.load(judges["prm"] / "model"), InstructionRewardModel.load(judges["irm"] / "model")
    return irm.score([QUESTION])[0], prm.score([QUESTION], [STEPS])[0].scores


def test_texts_and_messages_are_one_reward(judges, expected):
    reward = TrlReward(judges["prm"], judges["irm"])
    messages, said = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}], [{"role": "assistant", "content": ANSWER}]  # fmt: skip
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    r_i, scores = expected
    prompts = [QUESTION, f"<|user|>{QUESTION}<|assistant|>", messages, parts]
    assert reward(prompts=prompts, completions=[ANSWER, ANSWER, said, said]) == pytest.approx([r_i * min(scores)] * 4, rel=1e-5)
    assert reward([], []) == []


def test_parts_are_logged_and_what_follows_the_answer_is_not_scored(judges, expected):
    reward, metrics, extra = TrlReward(judges["prm"], judges["irm"]), {}, {}
    rewards = reward(
        [QUESTION] * 2,
        [f"{ANSWER}\nBen 9+9=1", "no answer"],
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
        trainer_state=None,
    )
    r_i, scores = expected
    assert rewards == pytest.approx([r_i * min(scores), 0.0], rel=1e-5)
    assert metrics == {"rlef/instruction": pytest.approx(r_i, rel=1e-5), "rlef/answer": pytest.approx(min(scores) / 2, rel=1e-5)}
    assert extra["step_scores"][0] == " ".join(f"{score:.2f}" for score in scores)


def test_an_unfinished_answer_gets_0_where_the_ends_are_known(judges):
    cut = {"prompts": [QUESTION] * 2, "completions": [ANSWER] * 2, "completion_ids": [[5, 6], [5, 1]]}
    assert [bool(one) for one in TrlReward(judges["prm"], stop_ids=[1])(**cut)] == [False, True]
    assert all(TrlReward(judges["prm"])(**cut))


def test_known_answers_count_only_where_they_are_asked_for(judges):
    two = {"prompts": [QUESTION] * 2, "completions": [ANSWER] * 2}
    assert [bool(one) for one in TrlReward(judges["prm"], use_answers=True)(**two, answer=["7", "8"])] == [True, False]
    assert all(TrlReward(judges["prm"])(**two, answer=["7", "8"]))
    with pytest.raises(UserError, match="no column `answer`"):
        TrlReward(judges["prm"], use_answers=True)(**two)


def test_a_runs_way_to_put_questions_is_taken_back(judges, expected):
    model = {"random": {}, "prompt_template": "Q: {question}\nA:", "answer_marker": "so"}
    stages = {name: {"kind": name} for name in ("problems", "sft", "label", "irm", "prm")}
    run = RunDir(judges["prm"].parent)
    run.create(Config.model_validate({"model": model, "stages": stages}).model_dump(mode="json"))
    with pytest.raises(UserError, match="no finished stage of kind prm"):
        TrlReward.of_run(run.root)
    run.finish("prm", {}, 1.0, {})
    reward = TrlReward.of_run(run.root)
    (score,) = reward.score([[{"role": "user", "content": f"Q: {QUESTION}\nA:"}]], ["Ben 3+4=7\nso 7"])
    prm = ProcessRewardModel.load(judges["prm"] / "model")
    assert score.instruction == 1.0 and score.step_scores == pytest.approx(
        prm.score([QUESTION], [["Ben 3+4=7", "so 7"]])[0].scores, rel=1e-5
    )


@pytest.mark.slow
def test_a_grpo_trainer_takes_it(judges, tiny, tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = tiny
    given = []

    class Watched(TrlReward):
        def __call__(self, **batch):
            given.append(super().__call__(**batch))
            return given[-1]

    reward = Watched(judges["prm"], judges["irm"], model=ModelSection(answer_marker="e"))  # which a random policy writes
    arguments = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, num_generations=4, per_device_train_batch_size=4, max_completion_length=24, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": QUESTION}], "answer": "7"}] * 4)
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/rlef/mean" in row]
    assert len(given) == len(logged) == 2 and any(any(rewards) for rewards in given)
    for row, rewards in zip(logged, given, strict=True):
        assert row["rewards/rlef/mean"] == pytest.approx(sum(rewards) / len(rewards), rel=1e-4) and "rlef/answer" in row


@pytest.mark.slow
def test_the_pages_code_runs(judges, tiny_folder, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "configs" / "OTHER_TOOLS.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": QUESTION}) + "\n" + json.dumps({"prompt": "7?"}) + "\n")
    small = "use_cpu=True, bf16=False, max_steps=1, num_generations=4, per_device_train_batch_size=4, report_to=[], disable_tqdm=True"
    code = code.replace("max_completion_length=64", f"max_completion_length=8, {small}").replace('"exported"', f'"{tiny_folder}"')
    exec(code.replace('TrlReward.of_run("runs/quickstart")', f'TrlReward("{judges["prm"]}", irm="{judges["irm"]}")'), {})
    assert (tmp_path / "trained" / "checkpoint-1" / "model.safetensors").is_file()
