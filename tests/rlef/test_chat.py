"""What `rlef chat` answers: the policy's own greedy words, each step with the score that training would give it."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import time

import pytest
import torch

from reward_models.config import ProcessModelConfig
from reward_models.model import build
from reward_models.process import SETTINGS, ProcessRewardModel
from rlef.cli import main
from rlef.commands.chat import Policy
from rlef.config import Config
from rlef.errors import UserError
from rlef.load_config import config_of
from rlef.models import decode, load_policy, load_tokenizer, prompt_ids, save_policy, stop_ids
from rlef.rollout.base import SampleRequest, SamplingParams
from rlef.rollout.hf import HFGenerator
from rlef.run_dir import RunDir
from tests.terminal import on_terminal

QUESTION = "Ann has 3 pens. How many?"
ANSWER = "Ben 3+4=7\n\nBen 7+1=8\n#### 8\nmore"


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    made = RunDir(tmp_path_factory.mktemp("chat") / "run")
    stages = {name: {"kind": kind} for name, kind in (("problems", "problems"), ("sft", "sft"), ("prm", "prm"), ("ppo", "ppo"))}
    made.create(Config.model_validate({"model": {"random": {}}, "stages": stages}).model_dump(mode="json"))
    for name in ("sft", "prm"):
        folder = made.start(name, {})
        if name == "sft":
            save_policy(load_policy(tiny_folder), load_tokenizer(tiny_folder), folder / "model")
        else:
            torch.manual_seed(1)
            model, tokenizer = build("process", tiny_folder, separator="<|step|>")
            with torch.no_grad():
                model.score.weight.mul_(30)
            save_policy(model, tokenizer, folder / "model")
            (folder / "model" / SETTINGS).write_text(ProcessModelConfig(max_length=96).model_dump_json())
        made.finish(name, {}, 1.0, {})
    return made


def policy(run, **options):
    given = {"stage": None, "temperature": 0.0, "max_tokens": 12, "seed": 0, "device": "cpu"} | options
    return Policy(config_of(run.root), run, argparse.Namespace(**given))


def test_it_answers_what_our_sampler_does(run):
    one = policy(run)
    stops = stop_ids(one.tokenizer, one.model)
    ids = tuple(prompt_ids(one.tokenizer, QUESTION, one.config.model))
    (ours,) = HFGenerator(one.model, one.tokenizer.pad_token_id).generate([SampleRequest(ids)], SamplingParams(12, 0.0, stops))
    assert one.answer(QUESTION, lambda step, score: None).text == decode(one.tokenizer, ours.tokens, stops)
    warm = [policy(run, temperature=1.0, seed=seed).answer(QUESTION, lambda step, score: None).text for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


def test_steps_come_with_their_scores_as_they_are_written(run):
    one, shown = policy(run, max_tokens=200), []

    def written(ids, streamer, **how):
        streamer.put(ids)
        for token in [*one.tokenizer.encode(ANSWER, add_special_tokens=False), one.tokenizer.eos_token_id]:
            streamer.put(torch.tensor([token]))
            seen.append(len(shown))

    seen: list[int] = []
    one.model.generate = written
    score = one.answer(QUESTION, lambda *step: shown.append(step))
    prm = ProcessRewardModel.load(run.stage("prm") / "model")
    expected = prm.score([QUESTION], [["Ben 3+4=7", "Ben 7+1=8", "#### 8"]])[0].scores
    assert [step for step, _ in shown] == ["Ben 3+4=7", "Ben 7+1=8", "#### 8", "more"]
    assert [score for _, score in shown[:3]] == pytest.approx(list(expected), abs=1e-6) and shown[3][1] is None
    assert score.step_scores == pytest.approx(expected, abs=1e-6) and score.total == pytest.approx(min(expected), abs=1e-6)
    assert score.extracted == "8" and score.zeroed is None
    assert sorted(set(seen)) == [0, 1, 2, 3]  # not all at the end


def test_a_line_in_an_answer_out(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{QUESTION}\n\n\xff\n".encode("latin-1"))))
    assert main(["chat", str(run.root), "--json", "--max-tokens", "4"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["question"] for row in rows] == [QUESTION, "�"]
    assert all(row["zeroed"] == "unfinished" and row["total"] == 0 for row in rows)


def test_a_question_too_long_is_told_and_the_next_is_answered(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{'1 ' * 400}\n{QUESTION}\n".encode())))
    assert main(["chat", str(run.root), "--json", "--max-tokens", "4"]) == 0
    shown = capsys.readouterr()
    assert "longer than the policy reads" in shown.err and json.loads(shown.out)["question"] == QUESTION


def test_without_a_reward_model_there_are_no_scores(run, tmp_path, monkeypatch, capsys):
    import shutil

    alone = tmp_path / "run"
    shutil.copytree(run.root, alone)
    shutil.rmtree(alone / "prm")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{QUESTION}\n".encode())))
    assert main(["chat", str(alone), "--max-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"> {QUESTION}\n") and "r_I" not in shown  # a pipe's questions stand above their answers
    shutil.rmtree(alone / "sft")
    with pytest.raises(UserError, match="no finished stage makes the policy"):
        policy(RunDir(alone))


@pytest.mark.slow
def test_on_a_terminal_it_asks_again_until_ctrl_c(run):
    process, master = on_terminal("chat", str(run.root), "--max-tokens", "40", kind="dumb")

    def until_prompt(after: bytes) -> None:
        shown = b""
        while after not in shown or b"> " not in shown.split(after)[-1]:
            shown += os.read(master, 4096)

    until_prompt(b"judged by prm")
    os.write(master, QUESTION.encode() + b"\n")
    until_prompt(b"r_A")
    time.sleep(0.5)  # input() misses a signal between its prompt and its wait for keys
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
