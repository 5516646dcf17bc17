"""The model card of an exported model: how its run made it, what was measured, how to load it, whose licences stand behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from reward_models.statistics import in_points
from rlef.cards.licences import base_of, licences, nameless
from rlef.config import AnyStage, Config, PpoStage, RewardSettings, Stage
from rlef.prompts import question_messages
from rlef.run_dir import Manifest

METHODS = {
    "sft": "supervised fine-tuning on solved examples", "rft": "fine-tuning on its own best answers",
    "ppo": "PPO on r = r_I · r_A", "dpo": "DPO on pairs ranked by r = r_I · r_A", "grpo": "GRPO on r = r_I · r_A",
    "irm": "ranking of evolved instructions", "prm": "classification of judged steps", "orm": "classification of whole solutions",
}  # fmt: skip
# What a stage counted, in the words of a card.
COUNTS = {
    "problems": {"seeds": "seed problems", "held_out": "held-out problems, trained on nowhere"},
    "evolve": {"kept": "evolved problems kept", "made": "evolved problems made"},
    "respond": {"solved": "evolved problems with a teacher's solution"},
    "label": {"lists": "ranked lists of instructions", "solutions": "solutions with judged steps"},
    "sft": {"rows": "solved examples trained on"},
    "ppo": {"samples": "answers sampled and scored"},
    "grpo": {"samples": "answers sampled and scored"},
    "dpo": {"pairs": "pairs of answers"},
}
LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
messages = MESSAGES
text = PROMPT
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
answer = model.generate(ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=256, do_sample=False)
print(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
TEMPLATED = "tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)"
PLAIN = '"\\n".join(message["content"] for message in messages) + "\\n"'


@dataclass(frozen=True)
class Made:
    """A model and the run that made it."""

    config: Config
    stage: str
    after: tuple[str, ...]  # stages whose models it was trained from, the first of them first
    manifests: Mapping[str, Manifest]  # of all finished stages
    results: Mapping[str, Mapping[str, Any]]  # what the run's evaluations measured, by policy
    info: Mapping[str, Any]  # run.json
    base_licence: str | None  # as the base model's own card states it

    @property
    def settings(self) -> AnyStage:
        return self.config.stages[self.stage]


def policy_card(made: Made, *, templated: bool) -> str:
    """README.md of a policy's folder. `templated`: its tokenizer has a chat template. Local paths and addresses are not named."""
    header = ["library_name: transformers", "pipeline_tag: text-generation"]
    header += [f"base_model: {base}"] if (base := base_of(made.config)) else []
    header += [f"license: {made.base_licence}"] if made.base_licence else []
    header += ["tags:", "- rlef", f"- {made.settings.kind}"]
    messages = json.dumps(question_messages("How many are 3 and 4?", made.config.model), ensure_ascii=False)
    load = LOAD.replace("MESSAGES", messages).replace("PROMPT", TEMPLATED if templated else PLAIN)
    marker = made.config.model.answer_marker
    parts = [
        f"# {made.stage}: a policy trained by {METHODS[made.settings.kind]}",
        "It answers step by step, a step ending with "
        f"`{made.config.model.step_delimiter.encode('unicode_escape').decode()}`, and puts the final answer behind `{marker}`.",
        *notes(made),
        "## Load\n\n" + load,
    ]
    return "---\n" + "\n".join(header) + "\n---\n\n" + "\n\n".join(parts) + "\n"


def notes(made: Made) -> list[str]:
    """The sections that hold for any model of a run, a reward model too, whose own card stands before them."""
    measured = _measured(made)
    return [
        "## Method\n\n" + _method(made),
        "## Data of the run\n\n" + "\n".join(_counts(made)),
        *(["## Measured\n\n" + measured] if measured else []),
        "## Settings that are not the defaults\n\n```yaml\n" + _settings(made) + "```",
        "## Versions\n\n" + _versions(made),
        "## Licences\n\n" + "\n".join(licences(made.config, made.base_licence)),
    ]


def _method(made: Made) -> str:
    base = base_of(made.config) or ("random initialisation" if made.config.model.path is None else "a local model")
    way = [f"`{name}`: {METHODS[made.config.stages[name].kind]}" for name in (*made.after, made.stage)]
    steps = "\n".join(f"{number}. {one}" for number, one in enumerate(way, 1))
    told = f"From {base}, by reinforcement learning from evolved feedback (RLEIF, arXiv 2308.09583):\n\n{steps}"
    if isinstance(made.settings, RewardSettings):
        told += "\n\nr_I is an instruction reward model's score of the problem" + (" (here 1)" if made.settings.irm == "none" else "")
        told += ", r_A the least step score of a process reward model."
        answers = made.settings.use_answers or (isinstance(made.settings, PpoStage) and made.settings.outcome_weight > 0)
        told += " Known answers entered the reward." if answers else " No known answer entered the reward."
    return told


def _counts(made: Made) -> list[str]:
    """Not of other models than those that it comes from."""
    lines = []
    for name, manifest in made.manifests.items():
        kind = made.config.stages[name].kind
        if kind in METHODS and name not in (*made.after, made.stage):
            continue
        lines += [f"- {manifest.result[key]:,} {words} (`{name}`)" for key, words in COUNTS.get(kind, {}).items() if key in manifest.result]
    return lines or ["- none counted"]


def _measured(made: Made) -> str:
    """A table of the run's policies on the same held-out problems; empty where nothing was evaluated."""
    if made.stage not in made.results:
        return ""
    lines = ["| policy | problems | greedy pass@1 | 95 % | difference, 95 % |", "|---|---|---|---|---|"]
    for policy, row in made.results.items():
        low, high = row["ci95"]
        gain = row.get("gain")
        mean, least, most = in_points(gain) if gain else ("", "", "")
        against = f"{mean} points over `{gain['over']}`, {least} to {most}" if gain else ""
        name = f"**`{policy}`**" if policy == made.stage else f"`{policy}`"
        lines.append(f"| {name} | {row['n']} | {row['pass@1']:.1%} | {low:.1%} to {high:.1%} | {against} |")
    own = made.results[made.stage]
    votes = [f"{name} {own[name]:.1%}" for name in own if name.partition("@")[0] in ("majority", "prm_vote") or name.startswith("best_of_")]
    told = f"\n\nWith several samples ({own['vote_n']} problems): {', '.join(votes)}." if votes else ""
    return "\n".join(lines) + told


def _settings(made: Made) -> str:
    """As YAML, of the stage and those before it."""
    shown: dict[str, Any] = {"model": nameless(made.config.model.model_dump(mode="json", exclude_defaults=True))}
    shown |= {name: _of_stage(made.config.stages[name]) for name in (*made.after, made.stage)}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def _of_stage(stage: Stage) -> dict[str, Any]:
    return {"kind": getattr(stage, "kind", "")} | nameless(stage.model_dump(mode="json", exclude_defaults=True))


def _versions(made: Made) -> str:
    versions, of = made.info.get("versions"), made.manifests[made.stage]
    told = [f"{name} {version}" for name, version in versions.items() if version] if isinstance(versions, dict) else []
    told += [f"Python {made.info['python']}"] if made.info.get("python") else []
    told += [f"commit {made.info['git']!s:.12}"] if made.info.get("git") else []
    return f"{', '.join(told) or 'not recorded'}; seed {made.config.seed_of(made.settings)}; {of.seconds:.0f} s for this stage."


def with_notes(card: str, sections: Sequence[str]) -> str:
    """A reward model's own card, and behind it what its run says."""
    return card.rstrip("\n") + "\n\n" + "\n\n".join(sections) + "\n"
