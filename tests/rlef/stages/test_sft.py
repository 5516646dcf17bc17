"""SFT through TRL: what carries loss, which weights are kept, what is left out and what is saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlef.config import Config
from rlef.errors import UserError
from rlef.models import load_policy, load_tokenizer, prompt_ids
from rlef.records import Problem, Solution, problem_id, write_jsonl
from rlef.stages import sft
from rlef.stages.context import StageContext
from rlef.tracking import Tracker

TINY = {"vocab_size": 320, "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 96, "max_positions": 256}


def problem(a, b):
    question = f"Ann has {a} pens. Ben has {b} more. How many pens does Ben have?"
    return Problem(id=problem_id(question), question=question, solution=(f"{a}+{b}={a + b}",), answer=str(a + b))


@pytest.fixture
def inputs(tmp_path):
    write_jsonl(tmp_path / "problems" / "seeds.jsonl", [problem(a, b) for a in range(8) for b in range(8)])
    answered = [
        Solution(problem_id="0", question=f"What is {a} times two?", steps=(f"{a}*2={2 * a}",), answer=str(2 * a), text="", writer="t")
        for a in range(9)
    ]
    write_jsonl(tmp_path / "responses" / "solved.jsonl", answered)
    return {"problems": tmp_path / "problems", "responses": tmp_path / "responses"}


def context(folder, inputs, *, model=None, **settings):
    stage = {"kind": "sft", "data": "seeds", "max_steps": 4, "eval_every": 2, "batch_size": 8, "micro_batch_size": 4} | settings
    data = {"model": model or {"random": TINY}, "stages": {"sft": stage}, "launch": {"device": "cpu"}}
    config = Config.model_validate(data)
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("sft", config, config.stages["sft"], inputs, folder, Tracker("sft", folder / "metrics.jsonl", quiet=True))


def curve(folder, name):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def brute_force(model, examples):
    """Mean negative log-likelihood of the answers' tokens, EOS included; one sequence at a time, without padding."""
    losses = []
    for example in examples:
        ids = torch.tensor([[*example.prompt, *example.answer]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses.append(-logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(example.prompt) - 1 :])
    return torch.cat(losses).mean().item()


# ------------------------------------------------------------------------------------------------ data


@pytest.mark.parametrize(("data", "rows"), [("seeds", 64), ("evolved", 9), ("both", 73)])
def test_data_is_seeds_evolved_or_both(tmp_path, inputs, data, rows):
    ctx = context(tmp_path / "run", inputs, data=data)
    texts = sft.training_texts(ctx, ctx.settings)
    assert len(texts) == rows
    assert texts[-1][1] == ("7+7=14\n#### 14" if data == "seeds" else "8*2=16\n#### 16")


def test_an_imported_answer_without_a_final_one_is_learned_as_it_is(tmp_path, inputs):
    prose = Solution(problem_id="1", question="Sort.", steps=("def f(x):\n    return sorted(x)",), answer=None, text="", writer="imported")
    file = inputs["responses"] / "solved.jsonl"
    file.write_text(file.read_text() + json.dumps(prose.model_dump(mode="json")) + "\n")
    ctx = context(tmp_path / "sft", inputs, data="evolved")
    assert sft.training_texts(ctx, ctx.settings)[-1] == ("Sort.", "def f(x):\n    return sorted(x)")


def test_what_is_no_math_is_trained_on_as_it_is_written(tmp_path):
    code = "def f():\n    return 1\n\nIt returns 1."
    seeds = [problem(1, 2), Problem(id="g", question="Rhyme.", solution=("A\n\n  B #### C",), domain="general")]
    seeds.append(Problem(id="k", question="Capital?", answer="Paris", solution=("It is Paris.",), domain="general"))
    write_jsonl(tmp_path / "problems" / "seeds.jsonl", [*seeds, Problem(id="u", question="Nobody answered.", domain="general")])
    responses = [Solution(problem_id="c", question="Program.", steps=(), answer=None, text=code, writer="t", finished=True)]
    responses.append(Solution(problem_id="m", question="1+1?", steps=("1+1=2",), answer="2", text="1+1=2\n#### 2.", writer="t"))
    write_jsonl(tmp_path / "responses" / "solved.jsonl", responses)
    ctx = context(tmp_path / "run", {"problems": tmp_path / "problems", "responses": tmp_path / "responses"}, data="both")
    texts = [answer for _, answer in sft.training_texts(ctx, ctx.settings)]
    assert texts == ["1+2=3\n#### 3", "A\n\n  B #### C", "It is Paris.", code, "1+1=2\n#### 2"]


def test_evolved_without_responses_is_the_users_mistake(tmp_path, inputs):
    ctx = context(tmp_path / "run", {"problems": inputs["problems"]}, data="evolved")
    with pytest.raises(UserError, match="respond"):
        sft.training_texts(ctx, ctx.settings)


def test_examples_are_prompt_and_answer_and_long_ones_are_counted(tmp_path, inputs):
    ctx = context(tmp_path / "run", inputs, data="both")
    texts = sft.training_texts(ctx, ctx.settings)
    _, tokenizer = sft._start(ctx, texts)
    examples, dropped = sft._examples(texts, tokenizer, ctx, 512)
    assert dropped == 0 and len(examples) == len(texts)
    for example, (question, answer) in zip(examples, texts, strict=True):
        assert list(example.prompt) == prompt_ids(tokenizer, question, ctx.config.model)
        assert tokenizer.decode(example.answer[:-1]) == answer and example.answer[-1] == tokenizer.eos_token_id
    lengths = sorted(len(example.prompt) + len(example.answer) for example in examples)
    limit = lengths[40]
    kept, dropped = sft._examples(texts, tokenizer, ctx, limit)
    assert len(kept) + dropped == 73 and len(kept) == sum(length <= limit for length in lengths)
    with pytest.raises(UserError, match="max_length"):
        sft._examples(texts, tokenizer, ctx, 8)


# ------------------------------------------------------------------------------------------------ training


def test_the_loss_with_logits_from_the_first_answer_on_is_that_of_all_logits_and_so_is_its_gradient():
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(shape).double()
    ids = torch.randint(50, (3, 9))
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 8 + [0]])
    labels = ids.clone()
    for row, (prompt, end) in enumerate([(5, 9), (3, 6), (4, 8)]):
        labels[row, :prompt] = labels[row, end:] = sft.IGNORED
    loss, right = sft.answer_loss(model, ids, mask, labels)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    said = [(logits[row, place - 1], ids[row, place]) for row in range(3) for place in range(9) if labels[row, place] != sft.IGNORED]
    expected = -sum(scores.log_softmax(-1)[token] for scores, token in said)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # in fp32
    assert right == sum(scores.argmax() == token for scores, token in said)
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_training_lowers_the_loss_and_what_is_saved_gives_the_same_logits(tmp_path, inputs, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held = {}
    start = sft._start
    monkeypatch.setattr(sft, "_start", lambda *arguments: held.setdefault("model", start(*arguments)))
    ctx = context(tmp_path / "run", inputs, max_steps=40, eval_every=10, patience=None, learning_rate=3e-3)
    result = sft.run(ctx)
    assert result["steps"] == 40 and result["rows"] == 64 and result["dropped_rows"] == 0 and not result["stopped_early"]
    losses, looks = curve(ctx.folder, "sft/loss"), curve(ctx.folder, "sft/eval_loss")
    assert list(looks) == [10, 20, 30, 40] and looks[40] == result["eval_loss"]
    assert losses[40] < 0.7 * losses[10] and looks[40] < 0.7 * looks[10]

    model, info = AutoModelForCausalLM.from_pretrained(ctx.folder / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(ctx.folder / "model")
    ids = torch.tensor([tokenizer.encode("<|user|>Ann has 3 pens.<|assistant|>3+4=7\n#### 7<|end|>")])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, held["model"][0].eval()(input_ids=ids).logits)


@pytest.mark.slow
def test_loss_is_over_answer_tokens_alone(tmp_path, inputs):
    """At a learning rate of nothing, TRL's losses are those of brute force over answers, padding and prompts left out."""
    ctx = context(tmp_path / "run", inputs, data="both", max_steps=2, eval_every=1, learning_rate=1e-30, batch_size=32, micro_batch_size=8)
    texts = sft.training_texts(ctx, ctx.settings)
    model, tokenizer = sft._start(ctx, texts)
    examples, _ = sft._examples(texts, tokenizer, ctx, 512)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    # One step holds all 32 rows: four micro-batches of very unequal token counts.
    train, held_back = examples[-32:], examples[:8]
    result = sft.fine_tune(
        ctx, ctx.settings, model, tokenizer, train, held_back, prefix="sft", max_steps=2, eval_every=1, patience=None
    )  # fmt: skip
    plain = load_policy(ctx.folder / "model")
    assert all(torch.allclose(value, weights[name], rtol=0, atol=1e-20) for name, value in plain.state_dict().items())
    assert result["loss"] == pytest.approx(brute_force(plain, train), rel=1e-5)
    assert result["eval_loss"] == pytest.approx(brute_force(plain, held_back), rel=1e-5)


@pytest.mark.slow
def test_stops_when_held_back_loss_rises_and_keeps_the_best_weights(tmp_path, inputs):
    ctx = context(tmp_path / "run", inputs, max_steps=60, learning_rate=0.02)
    model, tokenizer = sft._start(ctx, sft.training_texts(ctx, ctx.settings))
    examples, _ = sft._examples(sft.training_texts(ctx, ctx.settings), tokenizer, ctx, 512)
    # Answers of four rows learnt by heart say nothing about the others.
    result = sft.fine_tune(
        ctx, ctx.settings, model, tokenizer, examples[:4], examples[40:48], prefix="sft", max_steps=60, eval_every=3, patience=2
    )  # fmt: skip
    looks = curve(ctx.folder, "sft/eval_loss")
    assert result["stopped_early"] and result["steps"] < 60
    assert result["eval_loss"] == min(looks.values()) < list(looks.values())[-1]
    assert brute_force(load_policy(ctx.folder / "model"), examples[40:48]) == pytest.approx(result["eval_loss"], rel=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_init_goes_on_from_another_stage(tmp_path, inputs, tiny_folder):
    first, second = (context(tmp_path / name, inputs, max_steps=3, eval_every=100) for name in ("first", "second"))
    results = [sft.run(ctx) for ctx in (first, second)]
    assert results[0]["eval_loss"] == results[1]["eval_loss"] < 20  # a run shorter than eval_every is looked at once
    one, two = (load_file(ctx.folder / "model" / "model.safetensors") for ctx in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)

    again = context(tmp_path / "again", inputs | {"init": first.folder}, max_steps=1, learning_rate=1e-30)
    sft.run(again)
    three = load_file(again.folder / "model" / "model.safetensors")
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert load_tokenizer(again.folder / "model").get_vocab() == load_tokenizer(first.folder / "model").get_vocab()
