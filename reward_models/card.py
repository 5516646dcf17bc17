"""The model card that lies beside a trained reward model: its data, what was measured on held-out rows, how to load it elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_models.pages import as_markdown, tables
from reward_models.records import RankedList, SteppedSolution

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TASKS = {"irm": "text-classification", "prm": "token-classification", "orm": "token-classification"}
NAMES = {"irm": "Instruction reward model", "prm": "Process reward model", "orm": "Outcome reward model"}
PURPOSE = {
    "irm": "Scores instructions: how well defined, precise and complete a task is. r_I, in (0,1), is a win rate against stored references.",
    "prm": "Scores every step of a solution with the probability, in (0,1), that it is right. r_A of a solution is its least step score.",
    "orm": "Scores a whole solution with the probability, in (0,1), that its answer is right. Single steps have no score.",
}
TOKENS = """```python
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

model = AutoModelForTokenClassification.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
mark = tokenizer.convert_tokens_to_ids("{separator}")


def read(question, steps):  # token ids, and the places of the marks
    chat = [{{"role": "user", "content": question}}]
    start = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) if tokenizer.chat_template else question + "\\n"
    ids, *pieces = tokenizer([start, *(step + "\\n" for step in PARTS)], add_special_tokens=False)["input_ids"]
    places = []
    for piece in pieces:
        ids += [*(token for token in piece if token != mark), mark]
        places.append(len(ids) - 1)
    return ids, places


def score(question, steps):
    ids, places = read(question, steps)
    return model(torch.tensor([ids])).logits[0, places, 0].sigmoid().tolist()
```

vLLM, with `read` from above:

```python
from vllm import LLM

vllm = LLM(FOLDER, runner="pooling", dtype="float32")
rows = [read(question, steps) for question, steps in solutions]
found = vllm.encode([{{"prompt_token_ids": ids}} for ids, _ in rows], pooling_task="token_classify")
scores = [one.outputs.data[places, 0].tolist() for one, (_, places) in zip(found, rows)]
```

"""
LOAD = {
    "irm": """```python
import json

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
calibration = json.load(open(f"{{FOLDER}}/calibration.json"))


def read(text):
    return [*tokenizer(text, add_special_tokens=False)["input_ids"][: calibration["max_length"] - 1], tokenizer.eos_token_id]


def r_i(raw):  # the win rate against the stored references
    wins = (calibration["slope"] * (raw - torch.tensor(calibration["references"]))).sigmoid()
    return calibration["floor"] + (1 - calibration["floor"]) * wins.mean().item()


def score(text):
    return r_i(model(torch.tensor([read(text)])).logits[0, 0].item())
```

vLLM, with `read` and `r_i` from above:

```python
from vllm import LLM, PoolingParams

vllm = LLM(FOLDER, runner="pooling", dtype="float32")
raw = PoolingParams(use_activation=False)
found = vllm.encode([{{"prompt_token_ids": read(text)}} for text in texts], pooling_task="classify", pooling_params=raw)
scores = [r_i(one.outputs.data.item()) for one in found]
```

With this package: `InstructionRewardModel.load(FOLDER).score([text])`.""",
    "prm": TOKENS.replace("PARTS", "steps")
    + """The score of step k is the sigmoid of the logit at the k-th separator. With this package:
`ProcessRewardModel.load(FOLDER).score([question], [steps])`.""",
    "orm": TOKENS.replace("PARTS", '["\\n".join(steps)]')
    + """The score is the sigmoid of the logit at the one separator, behind the last step. With this package:
`ProcessRewardModel.load(FOLDER).score([question], [steps])`; it counts for the last step.""",
}


def model_card(
    kind: str,
    init: str | Path,
    labels: str | Path,
    rows: Sequence[RankedList | SteppedSolution],
    result: Mapping[str, Any],
    *,
    separator: str = "",
) -> str:
    """README.md of a model folder. `rows`: all that were read of the label file; `result`: what training returns.

    Names the base model where it is a hub id. Of local folders and files it says no more than the label file's name.
    """
    base = str(init) if HUB_ID.fullmatch(str(init)) and not Path(init).exists() else None
    unit = "lists" if kind == "irm" else "solutions"
    header = ["library_name: transformers", f"pipeline_tag: {TASKS[kind]}", *([f"base_model: {base}"] if base else [])]
    header += ["tags:", "- reward-model"]
    labellers = ", ".join(f"{name} {count}" for name, count in sorted(Counter(row.labeller for row in rows).items()))
    dropped = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in result.get("dropped", {}).items()) or "none"
    data = [
        f"- {len(rows)} {unit} of `{Path(labels).name}`; labelled by: {labellers}",
        f"- trained on {result[f'train_{unit}']}, dropped: {dropped}; held out: {result[f'held_out_{unit}']}",
    ]
    if "set_aside" in result:
        data.append(f"- rows of the file that could not be read: {result['set_aside']}")
    if "right_steps" in result:
        data.append(f"- {result['right_steps']:.1%} of the steps trained on are right")
    if "early_stopping" in result:
        found = result["early_stopping"]
        data.append(
            f"- weights of step {found['best_step']}, the best by {found['metric']} of {len(found['looks'])} looks at {found['rows']} "
            f"other {unit}, neither trained on nor held out"
        )
    if "slope" in result:
        data.append(f"- calibrated on the first half of the held-out lists (slope {result['slope']:.3g}); `ece` is that of the second half")
    if "threshold" in result:
        data.append(f"- the first-error threshold {result['threshold']:g} was fixed on rows trained on")
    measured = "\n\n".join(as_markdown(table) for table in tables(result))
    return (
        "---\n" + "\n".join(header) + "\n---\n\n"
        f"# {NAMES[kind]}\n\n{PURPOSE[kind]} Made from {base or 'a local model'}.\n\n"
        "## Data\n\n" + "\n".join(data) + "\n\n"
        f"## Measured on {result[f'held_out_{unit}']} held-out {unit}\n\n{measured}\n\n"
        f"## Load\n\n{LOAD[kind].format(separator=separator)}\n"
    )
