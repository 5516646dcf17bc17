"""The page of a run: complete, self-contained, and no model text in it can act."""

from __future__ import annotations

import json
import re
import time

import pytest
import yaml

from rlef.errors import UserError
from rlef.records import Eliminated, Lineage, Problem, Rollout, Truth, problem_id, read_jsonl, write_jsonl
from rlef.report.page import scripts, write_report
from rlef.stages.evolve import OUTSIDE

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def make_run(folder):
    stages = {name: {"kind": name} for name in ("problems", "method", "evolve", "irm", "prm", "ppo", "evaluate", "report")}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": stages}))
    results = {
        "method": {"failure_rate_before": 0.8, "failure_rate_after": 0.25, "before": {"failures": {"refusal": 4}}},
        "evolve": {
            "made": 4,
            "kept": 2,
            "eliminated": {"refusal": 1},
            "operations": {"up.add_step": 2},
            "flawed": 0.5,
            "rounds": {"1": {"pass_rate": 0.123, "in_band": 0.5}},
        },
        "irm": {"pair_accuracy": 0.9, "by_flaw": {HOSTILE: 0.8}},
        "prm": {"step_auroc": None, "by_depth": {"1": 0.9, "2": None}},
        "evaluate": {},
    }
    for name, result in results.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(json.dumps({"fingerprint": {}, "files": {}, "seconds": 3.0, "result": result}))
    seed = Problem(id=problem_id("seed"), question="seed")
    lineage = Lineage(parent=seed.id, root=seed.id, operation="up.add_step", round=1, teacher="t")
    child = Problem(id="c", question=HOSTILE, lineage=lineage)
    write_jsonl(folder / "problems" / "seeds.jsonl", [seed])
    write_jsonl(folder / "evolve" / "evolved.jsonl", [child])
    write_jsonl(folder / "evolve" / "eliminated.jsonl", [Eliminated(problem=child, rule="refusal")])
    rollout = Rollout(
        problem_id="c",
        iteration=1,
        sample=0,
        question=HOSTILE,
        text=f"{HOSTILE}\n#### 1",
        step_scores=(0.9, 0.1),
        instruction=0.5,
        answer=0.1,
        total=0.05,
        length=9,
        finished=True,
    )
    write_jsonl(folder / "ppo" / "rollouts.jsonl", [rollout])
    rows = [{"stage": "ppo", "step": step, "time": 0, "reward/total": step / 10, "ppo/kl": None} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "pp')
    policy = {"n": 10, "pass@1": 0.5, "ci95": [0.2, 0.8], "extraction_failures": 0.0, "by_depth": {"1": 0.5}, "majority@8": 0.6}
    better = policy | {"pass@1": 0.7, "gain": {"over": "sft", "mean": 0.2, "ci95": [0.1, 0.3]}}
    (folder / "evaluate" / "results.json").write_text(json.dumps({"sft": policy, "ppo": better}))
    return folder


def shown(page: str) -> str:
    """What stands in the page itself, without its scripts and their data."""
    return page.split("<script", 1)[0]


def data(page: str, name: str):
    found = re.search(rf"<script type=application/json id={name}>(.*?)</script>", page, re.DOTALL)
    assert found is not None, name
    return json.loads(found[1])


def test_the_page_is_whole_and_harmless(tmp_path):
    page = write_report(make_run(tmp_path / "run")).read_text()
    for word in (
        "seed",
        "up.add_step",
        "refusal",
        "70.0%",
        "above sft",
        "majority@8",
        "depth 1",
        "3 s",
        "80% failed by",
        "By feedback",
        "0.12",
        "<figure class=plot",
    ):
        assert word in shown(page), word
    assert "<img" not in page and "&lt;script&gt;" in shown(page)
    assert "http://" not in shown(page) and "https://" not in shown(page)
    assert re.findall(r"(?<!&lt;img )src=", shown(page)) == []
    assert "default-src 'none'" in page  # and no exception that would let a text, a frame or a picture be fetched
    node = data(page, "lineage-data")["nodes"][1]
    assert node["t"] == [[0, HOSTILE]] and node["o"] == "up.add_step"
    (item,) = data(page, "rollouts-data")["items"]
    assert item["t"] == [[HOSTILE, 0.9], ["#### 1", 0.1]] and (item["i"], item["r"], item["total"]) == (0.5, 0.1, 0.05)


def test_scripts_are_ours_alone_and_data_cannot_end_its_element(tmp_path):
    page = write_report(make_run(tmp_path / "run")).read_text()
    blocks = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [text for kind, text in blocks if not kind] == scripts()
    assert all(kind.startswith(" type=application/json id=") and "<" not in text for kind, text in blocks if kind)


def test_the_same_run_gives_the_same_page(tmp_path):
    run = make_run(tmp_path / "run")
    assert write_report(run).read_text() == write_report(run).read_text()


def test_the_menu_leads_to_sections_that_are_there(tmp_path):
    page = shown(write_report(make_run(tmp_path / "run")).read_text())
    links, anchors = set(re.findall(r"href='#([^']+)'", page)), set(re.findall(r"id='?([\w-]+)", page))
    assert links - anchors == set() and {"policies", "stages", "lineage", "rollouts", "stage-ppo"} <= links


def test_an_unfinished_run_has_a_page_and_no_run_is_an_error(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"config\.yaml"):
        write_report(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"stages": {"problems": {"kind": "problems"}, "ppo": {"kind": "ppo"}}}))
    assert "0 of 2 stages" in write_report(tmp_path / "run").read_text()


def test_grpo_has_the_curves_and_samples_of_ppo(tmp_path):
    run = make_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({"stages": config["stages"] | {"group": {"kind": "grpo", "iterations": 3}}}))
    write_jsonl(run / "group" / "rollouts.jsonl", read_jsonl(run / "ppo" / "rollouts.jsonl", Rollout))
    rows = [{"stage": "group", "step": step, "time": 0, "reward/total": step / 8, "grpo/kl": step / 9} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run).read_text()
    for words in ("GRPO (group): learning from", "group: 3 of 3 iterations", "KL from the start, nats a token"):
        assert words in shown(page), words
    assert data(page, "rollouts-data")["sources"] == ["group, iteration 1", "ppo, iteration 1"]


def test_rewrites_are_marked_and_told_in_plain_words(tmp_path):
    run = make_run(tmp_path / "run")
    seed = Problem(id="s", question="Ann has 2 eggs. How many?", depth=1)
    line = [seed]
    for number, (name, question, flaw) in enumerate(
        [
            ("a", "Ann has 2 eggs. She buys 3. How many?", None),
            ("b", "Ann has 2 eggs. She buys 3. She eats 1. How many?", None),
            ("c", "Ann has 2 eggs.", "no_question"),
        ],
        1,
    ):
        lineage = Lineage(parent=line[-1].id, root="s", operation="up.add_step", round=number, teacher="t")
        truth = Truth(program={}, shape="", flaw=flaw)
        line.append(Problem(id=name, question=question, depth=number + 1, answer=None if flaw else "4", lineage=lineage, truth=truth))
    write_jsonl(run / "problems" / "seeds.jsonl", [seed])
    write_jsonl(run / "evolve" / "evolved.jsonl", line[1:])
    page = write_report(run).read_text()
    assert "Ann has 2 eggs. <mark>She buys 3.</mark> How many? <span class=dim>(1 → 2 steps)" in page
    second = data(page, "lineage-data")["nodes"][2]
    assert second["t"] == [[0, "Ann has 2 eggs. She buys 3. "], [1, "She eats 1."], [0, " "], [0, "How many?"]] and second["r"] == 2
    for words in ("Flawed but kept", "nothing is asked", "the teacher refused", "+20.0 points, +10.0 to +30.0"):
        assert words in shown(page), words
    assert data(page, "rollouts-data")["problems"][0]["f"] == "no_question"


def test_answers_that_choose_data_are_none_in_the_reward(tmp_path):
    run = make_run(tmp_path / "run")
    stages = yaml.safe_load((run / "config.yaml").read_text())["stages"]
    for ppo in (False, True):
        stages |= {"respond": {"kind": "respond", "use_answers": True}, "ppo": {"kind": "ppo", "use_answers": ppo}}
        (run / "config.yaml").write_text(yaml.safe_dump({"stages": stages}))
        assert ("no known answer enters that reward" in write_report(run).read_text()) is not ppo


def test_every_rule_of_elimination_is_told_in_plain_words(tmp_path):
    run = make_run(tmp_path / "run")
    manifest = json.loads((run / "evolve" / "manifest.json").read_text())
    manifest["result"]["eliminated"] = {OUTSIDE: 1, "cut_off": 1}
    (run / "evolve" / "manifest.json").write_text(json.dumps(manifest))
    page = write_report(run).read_text()
    assert "too easy or too hard" in page and "max_tokens" in page


def test_parents_are_found_in_earlier_stages_and_known_answers_in_fresh_rounds(tmp_path):
    run = make_run(tmp_path / "run")
    stages = yaml.safe_load((run / "config.yaml").read_text())["stages"] | {"evolve_2": {"kind": "evolve"}}
    (run / "config.yaml").write_text(yaml.safe_dump({"stages": stages}))

    def child(name, parent, question):
        lineage = Lineage(parent=parent, root="s", operation="up.add_step", round=9, teacher="t")
        return Problem(id=name, question=question, answer="77", lineage=lineage)

    hard = child("hard", "c", "Too hard for now.")
    write_jsonl(run / "evolve" / "eliminated.jsonl", [Eliminated(problem=hard, rule=OUTSIDE)])
    write_jsonl(run / "evolve_2" / "evolved.jsonl", [child("d", "hard", "Too hard for now. And then?")])
    (run / "evolve_2" / "manifest.json").write_text((run / "evolve" / "manifest.json").read_text())
    write_jsonl(run / "ppo" / "fresh" / "round_001" / "evolved.jsonl", [child("e", "d", "Fresh?")])
    rollout = read_jsonl(run / "ppo" / "rollouts.jsonl", Rollout)[0]
    write_jsonl(run / "ppo" / "rollouts.jsonl", [rollout.model_copy(update={"problem_id": "e"})])
    page = write_report(run).read_text()
    assert "Too hard for now. <mark>And then?</mark>" in shown(page)
    assert data(page, "rollouts-data")["problems"][0] == {"q": HOSTILE, "o": "up.add_step", "a": "77"}
    line = [node for node in data(page, "lineage-data")["nodes"] if node.get("w")]
    assert [node["w"] for node in line] == [OUTSIDE]


def test_an_interrupted_stage_is_shown_as_begun(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "ppo" / "started.json").write_text("{}")
    (run / "evaluate" / "results.json").unlink()
    page = write_report(run).read_text()
    assert "3 of ? iterations, not finished" in page and "<th scope=row>ppo<td class=n>begun" in page and "Not evaluated yet" in page
    assert "ppo has begun and is not finished" in page


def test_long_and_repetitive_texts_are_cut_and_compared_at_no_cost(tmp_path):
    run = make_run(tmp_path / "run")
    lineage = Lineage(parent="a", root="s", operation="up.add_step", round=1, teacher="t")
    long = "word " * 100_000
    parent = Problem(id="a", question=long, lineage=lineage.model_copy(update={"parent": "s"}))
    write_jsonl(run / "evolve" / "evolved.jsonl", [parent, Problem(id="b", question=f"new {long}", lineage=lineage)])
    began = time.process_time()
    page = write_report(run).read_text()
    assert time.process_time() - began < 2 and "word  …" in page and len(page) - len("".join(scripts())) < 150_000


@pytest.mark.parametrize(
    "name,text",
    [
        ("evaluate/results.json", '{"ppo": {"n": 3}}'),
        ("evaluate/results.json", '{"ppo": '),
        ("irm/manifest.json", "[]"),
        ("config.yaml", "stages: [a]"),
        ("config.yaml", "\0"),
        ("ppo/rollouts.jsonl", "\0"),
    ],
)
def test_a_damaged_file_is_a_message_that_names_the_run(tmp_path, name, text):
    run = make_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(UserError, match="run"):
        write_report(run)


def test_rows_of_metrics_that_make_no_sense_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    before = write_report(run).read_text()
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write(
            '\n[]\n3\n{"stage": "ppo", "step": "x", "reward/total": 1}\n{"stage": "ppo", "step": 1, "ppo/kl": "<b>"}\n'
            + "9" * 5000
            + "\n"
            + "[" * 100_000
        )
    assert write_report(run).read_text() == before
