"""A first config from a few wishes: stages that fit the domain, sizes that fit the machine, a comment on each. Files are not touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from reward_models.nearest import meant_path
from rlef.config import ADDRESS
from rlef.errors import UserError

Wanted = Literal["embedded", "math", "code", "general"]
DOMAINS: dict[Wanted, str] = {
    "embedded": "word problems that rlef makes and judges itself; no data, key or network",
    "math": "problems with a final answer; the whole loop to PPO and DPO",
    "code": "programming tasks; evolution, answers and SFT",
    "general": "instructions of any kind; evolution, answers and SFT",
}
MODEL = "Qwen/Qwen2.5-1.5B-Instruct"  # where a domain needs a real one and none is named
TEMPLATE = "Solve the problem step by step, one short step a line. End with '####' and the final number.\n\n{question}"
ZERO_2 = "configs/deepspeed/zero2.json"
WIDTH = 140
Draft = dict[str, Any]  # a config as a plain mapping


@dataclass(frozen=True)
class Wishes:
    """What a user says. `model`: hub id or folder; None: random for the embedded domain. `data`, `test`: JSONL, or `data` a hub
    id, ID:SUBSET where it has several.
    `gpus`: 0 for a CPU. `teacher`: symbolic, hf or an address; `teacher_model`: whose name it takes."""

    domain: Wanted = "embedded"
    model: str | None = None
    data: str | None = None
    test: str | None = None
    gpus: int = 0
    teacher: str | None = None
    teacher_model: str | None = None

    @property
    def taught_by(self) -> str:
        return self.teacher or ("symbolic" if self.domain == "embedded" else "hf")

    @property
    def served(self) -> bool:
        return self.taught_by.startswith(ADDRESS)

    @property
    def from_file(self) -> bool:
        return Path(str(self.data)).is_file()

    @property
    def size(self) -> Literal["tiny", "cpu", "gpu"]:
        """tiny: a random model, in minutes; cpu: a real model, to see that all works; gpu: to learn something."""
        return "tiny" if self.domain == "embedded" and self.model is None else "gpu" if self.gpus else "cpu"

    def check(self) -> None:
        """Raises UserError for what does not go together."""
        if self.domain not in get_args(Wanted):
            raise UserError(f"--domain {self.domain}: no such domain", fix=f"one of {', '.join(DOMAINS)}")
        if self.domain == "embedded" and (self.data or self.test):
            raise UserError("--data: the embedded domain makes its own problems", fix="leave it out, or give --domain math")
        if self.domain != "embedded" and self.data is None:
            raise UserError(f"--domain {self.domain}: needs problems to start from", fix="give --data FILE.jsonl or a data set's hub id")
        if self.domain in ("code", "general") and self.test is not None:
            raise UserError(f"--test: without final answers nothing is graded in {self.domain}", fix="leave it out")
        if self.taught_by == "symbolic" and self.domain != "embedded":
            raise UserError("--teacher symbolic: knows the embedded problems alone", fix="give hf, or the address of an endpoint")
        if self.taught_by not in ("symbolic", "hf") and not self.served:
            raise UserError(f"--teacher {self.teacher}: neither symbolic, hf nor an address", fix="an address begins with http")
        if self.served and "@" in self.taught_by:
            raise UserError("--teacher: no password in an address", fix="the key is read from the environment variable OPENAI_API_KEY")
        if self.served and self.teacher_model is None:
            raise UserError(f"--teacher {self.teacher}: which model answers there?", fix="give --teacher-model NAME")
        if self.taught_by == "symbolic" and self.teacher_model is not None:
            raise UserError("--teacher-model: the symbolic teacher is a program", fix="leave it out, or give --teacher hf")
        for flag, file in (("--data", self.data), ("--test", self.test)):
            if file is not None and (flag == "--test" or file.endswith((".jsonl", ".json"))) and not Path(file).is_file():
                raise UserError(f"{flag} {file}: no such file{meant_path(file)}", fix="paths are taken from the folder you start in")


def draft(wishes: Wishes) -> Draft:
    """The sections and stages that answer to them."""
    wishes.check()
    several = wishes.gpus > 1
    sections: Draft = {
        "run": {"seed": 0},
        "model": _model(wishes),
        "teacher": _teacher(wishes),
    }
    if several:
        zero = {"deepspeed": ZERO_2} if Path(ZERO_2).is_file() else {}
        sections["launch"] = {"processes": wishes.gpus} | zero
    stages = {"problems": _problems(wishes)} | _stages(wishes)
    if wishes.served and "localhost" not in wishes.taught_by and "127.0.0.1" not in wishes.taught_by:
        for name in {"evolve", "respond", "label"} & set(stages):
            stages[name]["paid"] = True
    return sections | {"stages": stages}


def _model(wishes: Wishes) -> Draft:
    if wishes.size == "tiny":
        return {"random": {"vocab_size": 1024, "hidden_size": 128, "layers": 4, "heads": 4, "intermediate_size": 384, "max_positions": 512}}
    model: Draft = {"path": wishes.model or MODEL}
    if wishes.gpus > 1 and Path(ZERO_2).is_file():
        model["dtype"] = "bfloat16"  # DeepSpeed's optimiser keeps its own weights in fp32
    return model | ({} if wishes.domain in ("code", "general") else {"prompt_template": TEMPLATE})


def _teacher(wishes: Wishes) -> Draft:
    if wishes.taught_by == "symbolic":
        return {"kind": "symbolic", "flaw_rate": 0.25, "misread_rate": 0.9}
    if wishes.served:
        return {"kind": "openai", "model": wishes.teacher_model, "base_url": wishes.taught_by, "api_key_env": "OPENAI_API_KEY"}
    named = {"model": wishes.teacher_model} if wishes.teacher_model else {} if wishes.size != "tiny" else {"model": MODEL}
    return {"kind": "hf"} | named | {"batch_size": 32 if wishes.gpus else 16}


def _problems(wishes: Wishes) -> Draft:
    if wishes.domain == "embedded":
        return {"seeds": 400, "seed_depths": [1, 3], "held_out": 1000, "held_out_depths": [1, 5]}
    if wishes.from_file:
        source: Draft = {"source": "jsonl", "path": wishes.data}
    else:
        path, _, subset = str(wishes.data).partition(":")
        source = {"source": "datasets", "path": path} | ({"subset": subset} if subset else {})
    if wishes.domain != "math":
        source["domain"] = wishes.domain
    elif wishes.test is not None:
        source["held_out_path"] = wishes.test
    elif not wishes.from_file:
        source["held_out_split"] = "test"
    return source | {"seeds": 15000 if wishes.gpus else 64}


# ---------------------------------------------------------------------------------------------- stages


def _stages(wishes: Wishes) -> Draft:
    symbolic, size = wishes.taught_by == "symbolic", wishes.size
    graded = wishes.domain == "embedded" or wishes.test is not None or not wishes.from_file
    evolve: Draft = {
        "tiny": {"rounds": 4, "per_round": 4000, "max_depth": 5},
        "cpu": {"rounds": 1, "per_round": 64},
        "gpu": {"rounds": 4, "per_round": 8000},
    }[size]
    practised = wishes.domain not in ("code", "general")  # a small teacher keeps a dozen of its rewrites, and most are to be left
    respond: Draft = {"tiny": {"count": 3200}, "cpu": {"count": 4 if practised else 24}, "gpu": {"count": 15000}}[size] | {"samples": 4}
    sft: Draft = {
        "tiny": {"max_steps": 1050, "batch_size": 16, "micro_batch_size": 8, "learning_rate": 0.001, "eval_every": 150, "patience": 2},
        "cpu": {"max_steps": 24, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.00003, "eval_every": 12, "patience": None},
        "gpu": {"max_steps": 1000, "batch_size": 64, "micro_batch_size": 8, "learning_rate": 0.00002, "max_length": 1024, "patience": 3},
    }[size]
    if symbolic:
        respond |= {"use_answers": False, "min_agreement": 0.75}
    elif wishes.domain == "math":
        evolve["require_question"] = True
    if not practised:
        return {"evolve": evolve, "respond": respond, "sft": {"data": "both"} | sft, "report": {}}
    tokens = {"tiny": 64, "cpu": 128, "gpu": 512}[size]
    label: Draft = {
        "tiny": {"lists": 800, "list_size": 6, "count": 6000, "samples": 2},
        "cpu": {"lists": 6, "list_size": 4, "count": 8, "samples": 2, "completions": 2, "batch_size": 16, "held_out_fraction": 0.25},
        "gpu": {"lists": 5000, "list_size": 6, "count": 7500, "samples": 4, "batch_size": 128},
    }[size]
    label |= {"max_tokens": tokens} | ({"perturbed": 2} if symbolic else {})
    bf16 = {"bf16": True} if size == "gpu" else {}
    reward: Draft = {
        "tiny": {"batch_size": 16, "micro_batch_size": 8},
        "cpu": {"epochs": 1, "learning_rate": 0.00002, "batch_size": 4, "micro_batch_size": 2},
        "gpu": {"epochs": 1, "learning_rate": 0.00001, "batch_size": 64, "micro_batch_size": 8},
    }[size] | bf16
    rates = {"tiny": (0.0001, 0.0005, 0.00005), "cpu": (0.000001, 0.00001, 0.000001), "gpu": (0.000001, 0.000005, 0.0000005)}[size]
    ppo: Draft = {
        "tiny": {"iterations": 20, "prompts_per_iteration": 64, "samples_per_prompt": 8, "micro_batch_size": 32, "kl_coef": 0.01},
        "cpu": {"iterations": 2, "prompts_per_iteration": 4, "samples_per_prompt": 2, "minibatches": 2, "micro_batch_size": 1},
        "gpu": {"iterations": 200, "prompts_per_iteration": 128, "samples_per_prompt": 4, "micro_batch_size": 8},
    }[size]
    ppo |= {"max_tokens": tokens, "policy_lr": rates[0], "critic_lr": rates[1], "critic_warmup": {"tiny": 3, "cpu": 1, "gpu": 10}[size]}
    if size == "tiny":
        ppo |= {"critic_init": "prm", "lr_decay": True, "lr_warmup": 10, "share_prompts": True}
    elif size == "gpu" and "dtype" not in _model(wishes):
        ppo |= bf16
    dpo: Draft = {
        "tiny": {"count": 1000, "samples_per_prompt": 8, "batch_size": 32, "micro_batch_size": 32},
        "cpu": {"count": 12, "samples_per_prompt": 4, "min_margin": 0.0, "batch_size": 4, "micro_batch_size": 1},
        "gpu": {"count": 10000, "samples_per_prompt": 8, "batch_size": 64, "micro_batch_size": 4},
    }[size] | {"max_tokens": tokens, "learning_rate": rates[2]}
    if size != "tiny":
        rows = {"cpu": {"rollout_batch_size": 16, "score_batch_size": 4}, "gpu": {"rollout_batch_size": 128, "score_batch_size": 32}}[size]
        ppo, dpo = ppo | rows, dpo | rows
    prm = {"epochs": 3, "learning_rate": 0.001, "language_weight": 1.0} if size == "tiny" else {}
    irm = {"epochs": 2, "learning_rate": 0.0005} if size == "tiny" else {"references": 16} if size == "cpu" else {}
    stages: Draft = {"evolve": evolve, "respond": respond, "sft": {"data": "both"} | sft, "label": label}
    stages |= {"irm": reward | irm, "prm": reward | prm, "ppo": ppo, "dpo": dpo}
    if graded:
        counts = {
            "tiny": {"count": 400, "vote_count": 100, "k": 8},
            "cpu": {"count": 24, "vote_count": 4, "k": 4, "batch_size": 24},
            "gpu": {"count": 1000, "vote_count": 200, "k": 8, "batch_size": 128},
        }
        stages["evaluate"] = counts[size] | {"max_tokens": tokens}
    return stages | {"report": {}}


def with_changes(config: Draft, words: str) -> tuple[Draft, str | None]:
    """With overrides as `plan.together` proposes them (`launch.deepspeed=FILE sft.micro_batch_size=4`), but for a DeepSpeed file that
    is not in this folder; and that file."""
    changed = {key: dict(value) for key, value in config.items()}
    changed["stages"] = {name: dict(settings) for name, settings in config["stages"].items()}
    missing = None
    for key, value in (word.split("=", 1) for word in words.split()):
        section, _, name = key.partition(".")
        if key == "launch.deepspeed" and value != "null" and not Path(value).is_file():
            missing = value
            continue
        place = changed["stages"] if section in changed["stages"] else changed
        place.setdefault(section, {})[name] = yaml.safe_load(value)
    return changed, missing


# ---------------------------------------------------------------------------------------------- written

COMMENTS = {
    "model": "The policy. Each stage that trains saves a model of this kind, which plain from_pretrained loads.",
    "teacher": "Who evolves, answers and judges.",
    "launch": "Processes that train together, one a GPU. `rlef plan` shows what each holds under each ZeRO stage.",
    "problems": "Seeds with solutions, and held-out problems that nothing trains on.",
    "evolve": "Harder, easier and other problems; elimination keeps the sound ones.",
    "respond": "The teacher answers so many of them, for SFT; the others are left to practise on.",
    "sft": "Imitation of these answers and of the seeds.",
    "label": "Ranked versions of instructions for the IRM, judged steps of the policy's own solutions for the PRM.",
    "irm": "r_I: how good is the instruction?",
    "prm": "r_A: the least score of a step. `within_problem` in its manifest is the figure to watch.",
    "ppo": "PPO on r_I * r_A, held to the SFT policy by kl_coef.",
    "dpo": "The same reward, as pairs of best and worst answers.",
    "evaluate": "Greedy accuracy, votes and best of k, each with its interval.",
    "report": "One page: report.html.",
}
OF_THE_TEACHER = {
    "symbolic": "A program: it knows the truth, and errs as it is told to.",
    "hf": "A model in this process; without `model` the policy itself.",
    "openai": "The key is read from the environment variable that api_key_env names; it never stands here.\n"
    "`prices: {prompt: 0.15, completion: 0.60}` (USD per million tokens) and `max_cost_usd: 20` stop a run before it costs more.\n"
    "What is paid for (`paid: true`) is redone only with --yes.",
}


def written(config: Draft, file: str, wishes: Wishes, *, note: str = "") -> str:
    """The YAML file: a comment above each section and stage."""
    purpose = {"cpu": "The sizes show that every stage works; on a GPU raise them.", "tiny": "Minutes on a laptop."}.get(wishes.size, "")
    head = [f"{wishes.domain.capitalize()}: {DOMAINS[wishes.domain]}. {purpose}".strip(), f"Launch: rlef run {file}"]
    head += [f"Every key: configs/README.md; a typo is told. {note}".strip()]
    lines = [f"# {line}" for line in head]
    for name, settings in config.items():
        if name != "stages":
            told = f"{COMMENTS[name]} {OF_THE_TEACHER[settings['kind']]}" if name == "teacher" else COMMENTS.get(name, "")
            lines += [*(f"# {line}" for line in told.splitlines()), *_entry(name, settings, "")]
    lines.append("stages:")
    for name, settings in config["stages"].items():
        lines += [f"  # {COMMENTS[name]}", *_entry(name, settings, "  ")]
    return "\n".join(lines) + "\n"


def _entry(name: str, settings: Mapping[str, Any], indent: str) -> list[str]:
    """On one line, or a key a line where that is too long."""
    one = f"{indent}{name}: {_flow(dict(settings))}"
    if len(one) <= WIDTH:
        return [one]
    return [f"{indent}{name}:", *(f"{indent}  {key}: {_flow(value)}" for key, value in settings.items())]


def _flow(value: Any) -> str:
    """As YAML has it on one line; small numbers without an exponent."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"{value:.12f}".rstrip("0")
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"' if value == TEMPLATE else None, width=10_000).removesuffix("\n...\n").strip()
    return yaml.safe_dump(value).removesuffix("\n...\n").strip()
