"""What each stage holds on one GPU at its moments (sampling, training, the optimiser's step, ...), part by part. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from rlef.config import (
    COLOCATED_SHARE,
    AnyStage,
    Config,
    DpoStage,
    EvaluateStage,
    EvolveStage,
    GrpoStage,
    IrmStage,
    LabelStage,
    PpoStage,
    PrmStage,
    RftStage,
    SftStage,
    addresses,
    function_of,
)
from rlef.errors import UserError
from rlef.planning.memory import (
    Parts,
    Precision,
    Products,
    Trainer,
    Zero,
    adapted_inputs,
    backward_peak,
    classified,
    drawn_logits,
    forward_peak,
    kept_logits,
    kv_cache,
    on_host,
    precision_of,
    tiled_logits,
    trained,
    while_reduced,
    while_stepping,
)
from rlef.planning.shapes import Decoder, decoder_of

ANCHORS = 2  # items of other seeds beside each list: reward_models.train
READ_AT_ONCE = 64  # instructions that the IRM reads at once outside training
SHARE, VLLM_SHARE = "--gpu-memory-utilization", 0.9  # of a GPU, that a server takes unless told otherwise
SLEEP = "--enable-sleep-mode"
ALONE = frozenset({"evaluate", "evolve", "method"})  # on one GPU, however many there are


@dataclass(frozen=True)
class Machines:
    """`memory`: bytes of one GPU; `prompt_tokens`: of the longest prompt, which no setting limits."""

    gpus: int
    memory: float
    nodes: int = 1
    prompt_tokens: int = 256


@dataclass(frozen=True)
class Moment:
    """What is there at once. `key`: the stage's setting that makes it smaller."""

    name: str
    parts: Parts
    key: str | None = None

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Net:
    """A trained network: its trunk, trained and frozen parameters, and who trains it."""

    decoder: Decoder
    parameters: float
    trainer: Trainer
    zero: Zero | None
    ranks: int
    dtype: str = "float32"  # of the loaded weights
    bf16: bool = False
    frozen: float = 0.0  # parameters under adapters

    @property
    def products(self) -> Products:
        if self.dtype == "bfloat16" or (self.trainer == "reward_models" and self.bf16 and self.zero is not None):
            return "bfloat16"
        return "autocast" if self.bf16 else "float32"

    @property
    def width(self) -> int:
        return 2 if self.products == "bfloat16" else 4

    def _how(self) -> tuple[float, Precision, Zero | None, int]:
        return (
            self.parameters,
            precision_of(self.trainer, "float32" if self.frozen else self.dtype, self.bf16, self.zero),
            self.zero,
            self.ranks,
        )

    def states(self) -> Parts:
        parts = trained(*self._how())
        divided = self.zero is not None and self.zero.stage == 3
        return parts | {"frozen": self.frozen * self.width / (self.ranks if divided else 1)}

    def resting(self) -> Parts:
        """Between steps: gradients are let go, but for the flat buffers of ZeRO-3 and of ZeRO-1 in half precision."""
        kept = self.zero is not None and (self.zero.stage == 3 or (self.zero.stage == 1 and self._how()[1].weight == 2))
        return self.states() | ({} if kept else {"gradients": 0.0})

    def reduced(self) -> float:
        return while_reduced(*self._how(), self.trainer)

    def stepping(self) -> float:
        return while_stepping(*self._how(), self.trainer)

    def activations(self, tokens: float, *, checkpointing: bool) -> float:
        """Bytes of a backward pass at the most."""
        whole = backward_peak(self.decoder, tokens, self.products, checkpointing=checkpointing)
        return whole + (adapted_inputs(self.decoder, tokens, self.products, checkpointing=checkpointing) if self.frozen else 0.0)

    def host(self) -> float:
        return on_host(*self._how())


def add(*several: Mapping[str, float]) -> Parts:
    """The sum, part by part."""
    out: Parts = {}
    for parts in several:
        for name, value in parts.items():
            out[name] = out.get(name, 0.0) + value
    return out


@dataclass(frozen=True)
class Need:
    """Of a stage with its settings. `nets`: what it trains; `tokens`: of one micro-batch."""

    moments: tuple[Moment, ...]
    nets: tuple[Net, ...] = ()
    tokens: float = 0.0
    sampled: tuple[Decoder, float, float] | None = None  # rows x tokens that this GPU samples an iteration
    host: float = 0.0

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)


@dataclass
class Planner:
    """Needs of a run's stages. `inputs`: each stage's, as the pipeline resolves them."""

    config: Config
    inputs: Mapping[str, Mapping[str, str]]
    machines: Machines
    _decoders: dict[str | None, Decoder] = field(default_factory=dict)

    def need(self, name: str, stage: AnyStage, zero: Zero | None) -> Need | None:
        """None: the stage holds no model on a GPU. Raises UnknownShape where a shape is not known."""
        makers = {
            "sft": self._sft, "irm": self._irm, "prm": self._prm, "orm": self._prm, "ppo": self._ppo, "dpo": self._dpo, "rft": self._rft,
            "grpo": self._grpo, "label": self._label, "evaluate": self._evaluate, "evolve": self._evolve,
        }  # fmt: skip
        if stage.kind in makers:
            return makers[stage.kind](name, stage, zero)
        return self._taught(stage) if stage.kind in ("method", "respond") else None

    # ------------------------------------------------------------------------------------------ models

    def _decoder(self, source: str | None) -> Decoder:
        """Of the model that a stage makes or a folder holds; None: the config's."""
        while source in self.config.stages:
            of = self.inputs[source]
            source = of.get("init")
        if source not in self._decoders:
            folder = str(Path(source, "model")) if source is not None and Path(source, "model").is_dir() else source
            self._decoders[source] = decoder_of(self.config, folder)
        return self._decoders[source]

    @property
    def _width(self) -> int:
        return 4 if self.config.model.dtype == "float32" else 2

    def _ranks(self, kind: str) -> int:
        return 1 if kind in ALONE else self.machines.gpus

    def _loaded(self, name: str, stage: Any, keys: tuple[str, ...]) -> list[Decoder]:
        """The reward models that the stage holds itself: not those served elsewhere, nor functions."""
        here = [key for key in keys if not addresses(getattr(stage, key, None)) and function_of(getattr(stage, key, None)) is None]
        return [self._decoder(self.inputs[name][key]) for key in here if key in self.inputs[name]]

    def _on_base(self, name: str, stage: PpoStage, key: str) -> bool:
        """Whether a reward model is adapters on the very base that PPO's adapters stand on."""
        maker: Any = self.config.stages.get(self.inputs[name].get(key, ""))
        return stage.lora is not None and getattr(maker, "lora", None) is not None

    def _sampling(self, decoder: Decoder, rows: float, tokens: float, samples: int = 1) -> Parts:
        """`samples`: rows of a prompt, which is read once for all of them."""
        cache = kv_cache(decoder, rows, self.machines.prompt_tokens + tokens, self._width)
        read = ceil(rows / samples) * self.machines.prompt_tokens
        prefill = forward_peak(decoder, read, "float32" if self._width == 4 else "bfloat16")
        return {"kv_cache": cache, "logits": drawn_logits(decoder, rows, self._width), "activations": prefill}

    def _scoring(self, decoders: list[Decoder], rows: float, tokens: float) -> Parts:
        """Reward models are loaded in fp32."""
        return {"activations": max((forward_peak(one, rows * tokens, "float32") for one in decoders), default=0.0)}

    def _frozen(self, decoders: list[Decoder]) -> Parts:
        return {"frozen": sum(4.0 * one.classifier for one in decoders)}

    def _policy(self, decoder: Decoder) -> Parts:
        """One that is only read."""
        return {"frozen": float(self._width * decoder.parameters)}

    def _trl(self, decoder: Decoder, zero: Zero | None) -> Net:
        return Net(decoder, decoder.parameters, "trl", zero, self.machines.gpus, self.config.model.dtype)

    def _training(
        self, net: Net, tokens: float, logits: float, *, checkpointing: bool = False, beside: Parts | None = None, further: float = 0.0
    ) -> tuple[Moment, Moment]:
        """The backward pass of a micro-batch, and the optimiser's step."""
        activations = net.activations(tokens, checkpointing=checkpointing) + further
        passing = {"buffers": net.reduced(), "activations": activations, "logits": logits}
        states = add(net.states(), beside or {})
        return Moment("train", add(states, passing), "micro_batch_size"), Moment("step", add(states, {"buffers": net.stepping()}))

    # ------------------------------------------------------------------------------------------ stages

    def _sft(self, name: str, stage: SftStage, zero: Zero | None) -> Need:
        net = self._trl(self._decoder(name), zero)
        tokens = micro_rows(stage, self.machines.gpus) * stage.max_length
        moments = self._training(net, tokens, tiled_logits(net.decoder, tokens, net.width))
        return Need(moments, (net,), tokens, host=net.host())

    def _reward_net(self, name: str, stage: Any, zero: Zero | None) -> Net:
        decoder = self._decoder(self.inputs[name]["init"])
        adapted = 0 if stage.lora is None else decoder.adapter(stage.lora.rank) + decoder.hidden + 1
        frozen = decoder.trunk if stage.lora else 0.0
        return Net(decoder, adapted or decoder.classifier, "reward_models", zero, self.machines.gpus, bf16=stage.bf16, frozen=frozen)

    def _reward_model(self, net: Net, stage: Any, tokens: float, read: float, logits: float, beside: Parts, further: float) -> Need:
        """`read`: tokens that the whole model, on one GPU in fp32, reads at once when it is evaluated after the training."""
        head = classified(net.decoder, tokens, net.products)
        checkpointing = stage.gradient_checkpointing
        moments = self._training(net, tokens, logits, checkpointing=checkpointing, beside=beside, further=further + head)
        judged = add(self._frozen([net.decoder]), {"activations": forward_peak(net.decoder, read, "float32")})
        return Need((*moments, Moment("evaluate", judged, "micro_batch_size")), (net,), tokens, host=net.host())

    def _irm(self, name: str, stage: IrmStage, zero: Zero | None) -> Need:
        net = self._reward_net(name, stage, zero)
        labels = self.config.stages.get(self.inputs[name]["labels"])
        items = (labels.list_size if isinstance(labels, LabelStage) else LabelStage().list_size) + ANCHORS * (stage.cross_seed_weight > 0)
        tokens = micro_rows(stage, self.machines.gpus) * items * stage.max_length
        return self._reward_model(net, stage, tokens, READ_AT_ONCE * stage.max_length, 0.0, {}, 0.0)

    def _prm(self, name: str, stage: PrmStage, zero: Zero | None) -> Need:
        net = self._reward_net(name, stage, zero)
        rows = micro_rows(stage, self.machines.gpus)
        tokens = rows * stage.max_length
        language = stage.language_weight > 0
        # Logits of the language loss, their log-softmax and gradient; the frozen head in fp32; the mask of trees.
        logits = 3 * 4.0 * tokens * net.decoder.vocabulary if language else 0.0
        head = {"frozen": 4.0 * net.decoder.embedding if language else 0.0}
        return self._reward_model(net, stage, tokens, tokens, logits, head, 4.0 * rows * stage.max_length**2)

    def _ppo(self, name: str, stage: PpoStage, zero: Zero | None) -> Need:
        decoder, ranks = self._decoder(self.inputs[name]["init"]), self.machines.gpus
        if zero is not None and zero.stage == 0 and self.config.model.dtype == "bfloat16":
            zero = replace(zero, stage=1)  # as the engine does
        how: dict[str, Any] = {"zero": zero, "ranks": ranks, "dtype": self.config.model.dtype, "bf16": stage.bf16}

        # 1. What is trained, and what is only read.
        if stage.lora is not None:
            adapter = decoder.adapter(stage.lora.rank)
            nets = [
                Net(decoder, adapter, "engine", frozen=decoder.parameters, **how),
                Net(decoder, adapter + decoder.hidden + 1, "engine", zero, ranks),
            ]
            frozen: Parts = {}
        elif stage.shared_trunk:
            nets = [Net(decoder, decoder.parameters + decoder.hidden + 1, "engine", **how)]
            frozen = self._reference(nets[0])
        else:
            nets = [Net(decoder, decoder.parameters, "engine", **how), Net(decoder, decoder.classifier, "engine", **how)]
            frozen = self._reference(nets[0])
        if stage.average is not None:
            frozen = add(frozen, self._policy(decoder))
        asked = ("irm", "prm") if stage.fresh_every is not None else ("prm",)
        rewards = self._loaded(name, stage, asked)
        whole = self._loaded(name, stage, tuple(key for key in asked if not self._on_base(name, stage, key)))
        engine = {"vllm": self._vllm(name, stage)}
        lends = stage.rollout.colocated and SLEEP in shlex.split(stage.rollout.options)  # between rollouts its room is the trainer's
        beside = add(frozen, self._frozen(whole), {} if lends else engine)
        resting = add(*(net.resting() for net in nets), beside)

        # 2. Its moments. The activations of one net are gone before the next begins; gradients of both stay until the step.
        answers = ceil(stage.prompts_per_iteration / ranks) * stage.samples_per_prompt
        length = self.machines.prompt_tokens + stage.max_tokens
        moments, sampled = [], None
        if lends:
            moments.append(Moment("sample", add(resting, engine)))
        elif stage.rollout.by_policy:
            rows = min(stage.rollout_batch_size, answers)
            sampled = decoder, float(rows), float(answers * stage.max_tokens)
            sampling = self._sampling(decoder, rows, stage.max_tokens, stage.samples_per_prompt)
            moments.append(Moment("sample", add(resting, self._gathered(nets[0]), sampling), "rollout_batch_size"))
        scored = min(stage.score_batch_size, answers)
        moments.append(Moment("score", add(resting, self._scoring(rewards, scored, length)), "score_batch_size"))
        step_rows = ceil(ceil(stage.prompts_per_iteration / stage.minibatches) / ranks) * stage.samples_per_prompt
        micro = min(stage.micro_batch_size, step_rows)
        states = add(*(net.states() for net in nets), beside)
        policy = nets[0]
        tree = 4.0 * micro * length**2 if stage.share_prompts else 0.0
        passing = {
            "buffers": max(net.reduced() for net in nets),
            "activations": policy.activations(micro * length, checkpointing=stage.gradient_checkpointing) + tree,
            "logits": kept_logits(decoder, micro * stage.max_tokens, policy.products) * (3 if stage.entropy_coef > 0 else 1),
        }
        moments.append(Moment("train", add(states, passing), "micro_batch_size"))
        moments.append(Moment("step", add(states, {"buffers": max(net.stepping() for net in nets)})))
        return Need(tuple(moments), tuple(nets), micro * length, sampled, sum(net.host() for net in nets))

    def _vllm(self, name: str, stage: PpoStage) -> float:
        """The share of a GPU that vLLM takes: a server which the stage starts for itself stands on the first ones, an engine on each."""
        if stage.rollout.vllm is None and not stage.rollout.colocated:
            return 0.0
        unasked = COLOCATED_SHARE if stage.rollout.colocated else VLLM_SHARE
        words = shlex.split(stage.rollout.options.replace("=", " "))
        try:
            share = float(words[words.index(SHARE) + 1]) if SHARE in words else unasked
        except (ValueError, IndexError):
            raise UserError(f"stages.{name}.rollout.options: {SHARE} needs a number", fix="write a share of the GPU, e.g. 0.4") from None
        return share * self.machines.memory

    def _sampled(self, name: str, stage: DpoStage | RftStage, decoder: Decoder) -> list[Moment]:
        """A finished policy answers, and both reward models score it."""
        rewards = self._loaded(name, stage, ("irm", "prm"))
        beside = add(self._policy(decoder), self._frozen(rewards))
        length = self.machines.prompt_tokens + stage.max_tokens
        return [
            Moment(
                "sample",
                add(beside, self._sampling(decoder, stage.rollout_batch_size, stage.max_tokens, stage.samples_per_prompt)),
                "rollout_batch_size",
            ),
            Moment("score", add(beside, self._scoring(rewards, stage.score_batch_size, length)), "score_batch_size"),
        ]

    def _dpo(self, name: str, stage: DpoStage, zero: Zero | None) -> Need:
        net = self._trl(self._decoder(self.inputs[name]["init"]), zero)
        tokens = 2.0 * micro_rows(stage, self.machines.gpus) * (self.machines.prompt_tokens + stage.max_tokens)
        reference = self._reference(net)
        training = self._training(net, tokens, tiled_logits(net.decoder, tokens, net.width), beside=reference)
        return Need((*self._sampled(name, stage, net.decoder), *training), (net,), tokens, host=net.host())

    def _reference(self, net: Net) -> Parts:
        """A whole one, which DeepSpeed divides under ZeRO-3."""
        divided = net.zero is not None and net.zero.stage == 3
        return {"frozen": net.width * net.decoder.parameters / (net.ranks if divided else 1)}

    def _gathered(self, net: Net) -> Parts:
        """Under ZeRO-3 a policy that samples in this process is there whole on every rank while it does."""
        divided = net.zero is not None and net.zero.stage == 3
        return {"buffers": float(net.width * net.decoder.parameters) if divided else 0.0}

    def _rft(self, name: str, stage: RftStage, zero: Zero | None) -> Need:
        net = self._trl(self._decoder(self.inputs[name]["init"]), zero)
        tokens = float(micro_rows(stage, self.machines.gpus) * (self.machines.prompt_tokens + stage.max_tokens))
        training = self._training(net, tokens, tiled_logits(net.decoder, tokens, net.width))
        return Need((*self._sampled(name, stage, net.decoder), *training), (net,), tokens, host=net.host())

    def _grpo(self, name: str, stage: GrpoStage, zero: Zero | None) -> Need:
        net = self._trl(self._decoder(self.inputs[name]["init"]), zero)
        step, micro = stage.step_rows(self.machines.gpus)
        length = self.machines.prompt_tokens + stage.max_tokens
        rewards = self._loaded(name, stage, ("prm",))
        beside = add(self._frozen(rewards), self._reference(net) if stage.beta > 0 else {})
        resting = add(net.resting(), beside)
        gathered = self._gathered(net)
        answers = step * stage.minibatches
        rows, scored = min(stage.rollout_batch_size, answers), min(stage.score_batch_size, answers)
        sampling = self._sampling(net.decoder, rows, stage.max_tokens, stage.samples_per_prompt)
        moments = [
            Moment("sample", add(resting, gathered, sampling), "rollout_batch_size"),
            Moment("score", add(resting, gathered, self._scoring(rewards, scored, length)), "score_batch_size"),
            *self._training(
                net, micro * length, tiled_logits(net.decoder, micro * stage.max_tokens, net.width),
                checkpointing=stage.gradient_checkpointing, beside=beside,
            ),
        ]  # fmt: skip
        return Need(tuple(moments), (net,), micro * length, (net.decoder, float(rows), float(answers * stage.max_tokens)), net.host())

    def _label(self, name: str, stage: LabelStage, zero: Zero | None) -> Need | None:
        taught = self._taught(stage)
        if stage.server is not None:
            return taught
        decoder = self._decoder(self.inputs[name]["policy"])
        parts = add(self._policy(decoder), self._sampling(decoder, stage.batch_size, stage.max_tokens))
        return Need((Moment("sample", parts, "batch_size"), *(taught.moments if taught else ())))

    def _evaluate(self, name: str, stage: EvaluateStage, zero: Zero | None) -> Need | None:
        """One policy after another, beside the PRM; policies behind servers take no room."""
        rewards = self._loaded(name, stage, ("prm",))
        policies = [key.partition(":")[2] for key in self.inputs[name] if key.startswith("policy:")]
        if self.config.model.path is not None and (stage.policies is None or "base" in stage.policies):
            policies.append("base")
        rows = min(stage.batch_size, max(stage.count, stage.vote_count * stage.k))
        moments = []
        for policy in policies:
            if policy not in stage.servers:
                decoder = self._decoder(None if policy == "base" else policy)
                here = add(self._policy(decoder), self._frozen(rewards), self._sampling(decoder, rows, stage.max_tokens))
                moments.append(Moment("sample", here, "batch_size"))
        if rewards:
            length = self.machines.prompt_tokens + stage.max_tokens
            moments.append(Moment("score", add(self._frozen(rewards), self._scoring(rewards, rows, length)), "batch_size"))
        return Need(tuple(moments)) if moments else None

    def _evolve(self, name: str, stage: EvolveStage, zero: Zero | None) -> Need | None:
        taught = self._taught(stage)
        if stage.choose == "weights" or "policy" not in self.inputs[name]:
            return taught
        decoder = self._decoder(self.inputs[name]["policy"])
        beside = add(self._policy(decoder), self._frozen(self._loaded(name, stage, ("prm",))), taught.moments[0].parts if taught else {})
        return Need((Moment("sample", add(beside, self._sampling(decoder, stage.batch_size, stage.max_tokens)), "batch_size"),))

    def _taught(self, stage: AnyStage) -> Need | None:
        """A teacher in this process."""
        teacher = self.config.teacher
        if teacher.kind != "hf":
            return None
        decoder = decoder_of(self.config, teacher.model, teacher.gguf_file)
        parts = add(self._policy(decoder), self._sampling(decoder, teacher.batch_size, teacher.max_tokens))
        return Need((Moment("teacher", parts),))


def micro_rows(stage: Any, ranks: int) -> int:
    """Rows of a forward pass on one process, as the trainers take them."""
    return max(1, min(stage.micro_batch_size, stage.batch_size // ranks))
