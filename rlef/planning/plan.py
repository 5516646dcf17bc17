"""Before a run: what each stage needs of a GPU under each ZeRO stage, what fits, the fastest setting that does, its time. No torch.

Times are estimates from operations and bandwidths (`Speed`), good for comparing settings and not for promises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from reward_models.config import LoraSettings
from rlef.config import AnyStage, Config, GrpoStage, PpoStage, TrainSettings
from rlef.errors import UserError, raise_all
from rlef.planning.memory import GB, PARTS, Zero
from rlef.planning.needs import ALONE, Machines, Moment, Need, Net, Planner
from rlef.planning.shapes import UnknownShape, decoder_of

# DeepSpeed files that ship, from cheap to slow, and what they ask of a GPU; None: plain torch.
FILES: dict[str | None, Zero | None] = {
    None: None,
    "configs/deepspeed/zero1.json": Zero(stage=1),
    "configs/deepspeed/zero2.json": Zero(stage=2),
    "configs/deepspeed/zero3.json": Zero(stage=3, overlap=True),
    "configs/deepspeed/zero2_offload.json": Zero(stage=2, offload_optimizer=True),
    "configs/deepspeed/zero3_offload.json": Zero(stage=3, overlap=True, offload_optimizer=True, offload_weights=True),
}


@dataclass(frozen=True)
class Speed:
    """Of one GPU, in operations and bytes a second; the defaults are an H100 SXM's. Shares of the peak are what training code reaches."""

    half: float = 989e12  # bfloat16 products
    full: float = 67e12  # fp32 products, TF32 off as torch has it
    memory: float = 3.35e12
    link: float = 450e9  # between GPUs of a machine, one way
    network: float = 50e9  # between machines, for each GPU
    host: float = 50e9  # between GPU and host, and what the host's Adam reads and writes for one GPU
    used: float = 0.4  # share of the operations
    reached: float = 0.6  # share of the bandwidths
    launch: float = 1e-3  # seconds that one layer of a decoding step takes at least


@dataclass(frozen=True)
class Setting:
    """A stage under a DeepSpeed file. `changes`: what must be set on the command line, by key."""

    file: str | None
    zero: Zero | None
    stage: AnyStage
    need: Need
    seconds: float | None  # of an optimiser step, or of an iteration; None: not estimated
    changes: Mapping[str, Any]

    @property
    def overrides(self) -> str:
        return as_words(self.changes)


@dataclass(frozen=True)
class StagePlan:
    """`now`: as the config has it; None where it cannot run under its ZeRO stage. `table`: the same settings under each file. `fitting`:
    the fastest that fits under each file and changes no result. `otherwise`: what else would do, where it does not fit as it is."""

    name: str
    kind: str
    now: Setting | None
    fits: bool
    table: tuple[Setting, ...]
    fitting: tuple[Setting, ...]
    otherwise: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """How to make it fit."""
        return "; or ".join([*([f"set {told(self.best)}"] if self.best is not None else []), *self.otherwise])

    @property
    def best(self) -> Setting | None:
        """The fastest."""
        return _fastest(self.fitting)


def plan(config: Config, inputs: Mapping[str, Mapping[str, str]], machines: Machines, speed: Speed = Speed()) -> list[StagePlan]:
    """One for each stage that holds a model on a GPU. Raises UnknownShape where a model's shape is not known."""
    return [found for name in config.stages if (found := _stage_plan(config, inputs, machines, speed, name)) is not None]


def refuse(config: Config, inputs: Mapping[str, Mapping[str, str]], machines: Machines) -> None:
    """Raises UserError where a stage does not fit as it is set."""
    raise_all(refused(plan(config, inputs, machines), machines))


def memory_lines(config: Config, inputs: Mapping[str, Mapping[str, str]], machines: Machines) -> list[str]:
    """What `rlef check` says of a GPU; none for a run without a model."""
    zero = Zero.read(config.launch.deepspeed)
    planner = Planner(config, inputs, machines)
    try:
        found = {name: planner.need(name, stage, zero) for name, stage in config.stages.items()}
        peaks = {name: need.peak for name, need in found.items() if need is not None}
        if not peaks:
            return []
        parameters = decoder_of(config).parameters
    except UnknownShape as error:
        return [error.problem]
    lines = [f"model: {parameters / 1e6:.2f} M parameters" + (" (vocabulary at its upper limit)" if config.model.random else "")]
    how = f"{config.model.dtype}, " + (f"ZeRO-{zero.stage} over {machines.gpus} processes" if zero else "unsharded")
    listed = ", ".join(f"{name} {peak.total / GB:.2f}" for name, peak in peaks.items())
    largest = max(peaks, key=lambda name: peaks[name].total)
    lines.append(f"memory of a device at the most ({how}), GB: {listed}")
    lines.append(f"  the largest is {largest} ({peaks[largest].name}); `rlef plan` shows its parts and other settings")
    return lines


def refused(plans: Sequence[StagePlan], machines: Machines) -> list[UserError]:
    """One for each stage that does not fit as it is set, with the nearest setting that does."""
    wrong = []
    for one in plans:
        if one.fits:
            continue
        if one.now is None:
            problem = f"stages.{one.name}: {one.kind} as it is set does not run under ZeRO-3"
        else:
            peak = one.now.need.peak
            largest = sorted(peak.parts, key=lambda part: -peak.parts[part])[:3]
            shown = ", ".join(f"{part} {peak.parts[part] / GB:.1f}" for part in largest)
            problem = (
                f"stages.{one.name}: needs {peak.total / GB:.1f} GB of a GPU's {machines.memory / GB:.0f} (moment: {peak.name}; {shown} GB)"
            )
        wrong.append(UserError(problem, fix=one.advice))
    return wrong


def together(plans: Sequence[StagePlan]) -> str | None:
    """Of all DeepSpeed files under which every stage fits the fastest, as the overrides of one command; None: there is none."""
    trained = [one for one in plans if one.now is None or one.now.need.nets]
    common = [{setting.file: setting for setting in one.fitting} for one in trained]
    files = [file for file in (common[0] if common else {}) if all(file in found for found in common)]
    others = [one.best for one in plans if one not in trained]
    if (common and not files) or None in others:
        return None
    choices = [[found[file] for found in common] for file in files] or [[]]
    best = min(choices, key=lambda settings: (sum(one.seconds or 0.0 for one in settings), sum(len(one.changes) for one in settings)))
    changes = {key: value for one in [*best, *others] if one is not None for key, value in one.changes.items()}
    return as_words(changes)


# ---------------------------------------------------------------------------------------------- search


def _stage_plan(config: Config, inputs: Mapping[str, Mapping[str, str]], machines: Machines, speed: Speed, name: str) -> StagePlan | None:
    stage = config.stages[name]
    search = _Search(config, inputs, machines, speed, name)
    own = Zero.read(config.launch.deepspeed)
    if search.planner.need(name, stage, own) is None:
        return None
    now = search.setting(config.launch.deepspeed, own, stage) if search.allowed(own) else None
    fits = now is not None and now.need.peak.total <= machines.memory
    # Where nothing is trained no ZeRO stage changes anything.
    files = {config.launch.deepspeed: own} if now is not None and not now.need.nets else search.files()
    table = tuple(search.setting(file, zero, stage) for file, zero in files.items())
    found = search.fitting(files)
    return StagePlan(name, stage.kind, now, fits, table, found, () if fits else search.otherwise(_fastest(found)))


@dataclass
class _Search:
    config: Config
    inputs: Mapping[str, Mapping[str, str]]
    machines: Machines
    speed: Speed
    name: str

    @cached_property
    def planner(self) -> Planner:
        return Planner(self.config, self.inputs, self.machines)

    @property
    def stage(self) -> AnyStage:
        return self.config.stages[self.name]

    def allowed(self, zero: Zero | None) -> bool:
        return zero is None or zero.stage < 3 or not isinstance(self.stage, PpoStage) or self.stage.against_zero_3 is None

    def files(self) -> dict[str | None, Zero | None]:
        """The config's own, and those that ship, as far as the stage runs under them."""
        own = {self.config.launch.deepspeed: Zero.read(self.config.launch.deepspeed)}
        return {file: zero for file, zero in (FILES | own).items() if self.allowed(zero)}

    def setting(self, file: str | None, zero: Zero | None, stage: AnyStage) -> Setting:
        need = self.planner.need(self.name, stage, zero)
        assert need is not None
        before = self.stage
        changes: dict[str, Any] = {} if file == self.config.launch.deepspeed else {"launch.deepspeed": file}
        changes |= {f"{self.name}.{key}": value for key, value in stage if value != getattr(before, key)}
        return Setting(file, zero, stage, need, seconds(stage, need, self.machines, self.speed), changes)

    def smaller(self, file: str | None, zero: Zero | None, stage: AnyStage) -> Setting | None:
        """With the keys of its largest moments made smaller until it fits; None: it does not."""
        while True:
            setting = self.setting(file, zero, stage)
            peak = setting.need.peak
            if peak.total <= self.machines.memory:
                return setting
            less = _less(stage, peak, self.machines.gpus)
            if less is None:
                return None
            stage = stage.model_copy(update={str(peak.key): less})

    def fitting(self, files: Mapping[str | None, Zero | None]) -> tuple[Setting, ...]:
        """Of all that change no result the fastest that fits, under each file."""
        found = []
        for file, zero in files.items():
            ways = [fit for stage in _checkpointed(self.stage) if (fit := self.smaller(file, zero, stage)) is not None]
            if (best := _fastest(ways)) is not None:
                found.append(best)
        return tuple(found)

    def otherwise(self, found: Setting | None) -> tuple[str, ...]:
        """What else would do beside the setting that was `found`: more GPUs where it offloads, and where there is none also settings that
        change results."""
        told = []
        gpus = self.machines.gpus
        wanted = found is None or (found.zero is not None and found.zero.offload_optimizer)
        while wanted and self.stage.kind not in ALONE and _divisible(self.stage, gpus := 2 * gpus):
            more = replace(self, machines=replace(self.machines, gpus=gpus))
            files = {file: zero for file, zero in more.files().items() if zero is None or not zero.offload_optimizer}
            if (best := _fastest(more.fitting(files))) is not None:
                told.append(f"{gpus} such GPUs{f' with {best.overrides}' if best.changes else ''}")
                break
        if found is not None:
            return tuple(told)
        for what, config in _other_ways(self.config, self.name):
            other = replace(self, config=config)
            if (best := _fastest(other.fitting(other.files()))) is not None:
                told.append(f"{what} {best.overrides}".strip() + ", with other results")
        whole = max(moment.parts.get("frozen", 0.0) for moment in self.setting(None, None, self.stage).need.moments)
        return tuple(told) or (f"nothing: {whole / GB:.0f} GB of models stand whole on a GPU; serve them, or take larger GPUs",)


def _fastest(settings: Sequence[Setting]) -> Setting | None:
    """Of equal ones that with the fewest changes."""
    return min(settings, key=lambda one: (one.seconds or 0.0, len(one.changes)), default=None)


def _checkpointed(stage: AnyStage) -> Iterator[AnyStage]:
    yield stage
    if getattr(stage, "gradient_checkpointing", True) is False:
        yield stage.model_copy(update={"gradient_checkpointing": True})


def _less(stage: Any, peak: Moment, ranks: int) -> int | None:
    """The next smaller value of the moment's key that the stage's rules allow."""
    if peak.key is None:
        return None
    value = getattr(stage, peak.key)
    most = value
    if peak.key == "micro_batch_size" and isinstance(stage, TrainSettings):
        most = max(1, stage.batch_size // ranks)
    elif peak.key == "micro_batch_size" and isinstance(stage, GrpoStage):
        most = stage.step_rows(ranks)[0]
    if peak.key == "micro_batch_size" and isinstance(stage, TrainSettings | GrpoStage):
        return max((one for one in range(1, min(value, most + 1)) if most % one == 0), default=None)
    return value // 2 or None


def _divisible(stage: Any, gpus: int) -> bool:
    """Whether a step's rows can be dealt to so many."""
    rows = stage.batch_size if isinstance(stage, TrainSettings) else getattr(stage, "prompts_per_iteration", 0)
    return rows > 0 and rows % gpus == 0


def _other_ways(config: Config, name: str) -> Iterator[tuple[str, Config]]:
    """Settings that need less and change results, each with the config that has it."""
    stage = config.stages[name]

    def changed(**update: Any) -> Config:
        return config.model_copy(update={"stages": {**config.stages, name: stage.model_copy(update=update)}})

    if config.model.dtype == "float32":
        yield "model.dtype=bfloat16", config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    if getattr(stage, "bf16", True) is False:
        yield f"{name}.bf16=true", changed(bf16=True)
    if stage.kind == "ppo" and not stage.shared_trunk and stage.lora is None:
        yield f"{name}.shared_trunk=true", changed(shared_trunk=True)
    if getattr(stage, "lora", True) is None:
        yield f"'{name}.lora={{rank: 16}}'", changed(lora=LoraSettings(), **({"shared_trunk": False} if stage.kind == "ppo" else {}))


# ---------------------------------------------------------------------------------------------- time


def seconds(stage: AnyStage, need: Need, machines: Machines, speed: Speed) -> float | None:
    """An estimate: of one optimiser step; of PPO and GRPO of one iteration, sampling included."""
    if not need.nets:
        return None
    ranks = machines.gpus
    settings: Any = stage
    if stage.kind in ("ppo", "grpo"):
        steps = settings.minibatches * settings.epochs
        rows = settings.prompts_per_iteration * settings.samples_per_prompt * settings.epochs / ranks
        row = machines.prompt_tokens + settings.max_tokens
        passes = max(1.0, rows * row / need.tokens)
        extra = 1 / 3 if stage.kind == "ppo" else 0.0  # log-probabilities and values before the first step
    else:
        steps, extra = 1, 0.0
        rows_of_a_forward = min(settings.micro_batch_size, max(1, settings.batch_size // ranks))
        passes = max(1.0, settings.batch_size / ranks / rows_of_a_forward)
    checkpointing = bool(getattr(settings, "gradient_checkpointing", False))
    total = sum(_training(net, need.tokens, passes, steps, checkpointing, machines, speed) * (1 + extra) for net in need.nets)
    return total + (_sampling(need.sampled, need.nets[0], speed) if need.sampled else 0.0)


def _training(net: Net, tokens: float, passes: float, steps: int, checkpointing: bool, machines: Machines, speed: Speed) -> float:
    """6 operations a parameter and token, 8 where activations are computed twice; what travels between GPUs; what the host steps on."""
    decoder, zero, ranks = net.decoder, net.zero, net.ranks
    multiplied = decoder.layers * decoder.linear + decoder.embedding
    peak = speed.full if net.products == "float32" else speed.half
    total = (8 if checkpointing else 6) * multiplied * tokens * passes / (peak * speed.used)

    whole = (net.parameters + net.frozen) * net.width
    wire = (speed.network if machines.nodes > 1 else speed.link) * speed.reached
    stage = zero.stage if zero is not None else 0
    if ranks > 1 and stage == 3:
        total += passes * whole * (4 if checkpointing else 3) / wire  # gathered for each pass, gradients reduced after it
    elif ranks > 1:
        total += net.parameters * net.width * ((passes if stage == 2 else steps) + steps) / wire
    if zero is not None and zero.offload_optimizer:
        total += steps * net.parameters / ranks * (4 + net.width + 28) / (speed.host * speed.reached)
    if zero is not None and zero.offload_weights:
        total += passes * whole / ranks * 2 / (speed.host * speed.reached)
    return total


def _sampling(sampled: tuple[Any, float, float], net: Net, speed: Speed) -> float:
    """Every token of a batch of rows reads all weights once, and takes the sampler its time for each layer."""
    decoder, rows, tokens = sampled
    step = max(decoder.parameters * net.width / (speed.memory * speed.reached), decoder.layers * speed.launch)
    return tokens / rows * step


# ---------------------------------------------------------------------------------------------- shown


def as_json(plans: Sequence[StagePlan], machines: Machines) -> dict[str, Any]:
    """All of it, in bytes and seconds."""
    return {
        "gpus": machines.gpus,
        "nodes": machines.nodes,
        "gpu_memory_bytes": machines.memory,
        "fits": all(one.fits for one in plans),
        "together": together(plans),
        "stages": {
            one.name: {
                "kind": one.kind,
                "fits": one.fits,
                "now": _setting_json(one.now),
                "best": _setting_json(one.best),
                "otherwise": list(one.otherwise),
                "settings": [_setting_json(setting) for setting in one.table],
            }
            for one in plans
        },
    }


def _setting_json(setting: Setting | None) -> dict[str, Any] | None:
    if setting is None:
        return None
    return {
        "deepspeed": setting.file,
        "changes": dict(setting.changes),
        "bytes": setting.need.peak.total,
        "peak": setting.need.peak.name,
        "moments": {moment.name: {part: round(moment.parts.get(part, 0.0)) for part in PARTS} for moment in setting.need.moments},
        "host_bytes": setting.need.host,
        "seconds_estimate": setting.seconds,
    }


def told(setting: Setting) -> str:
    """What to set, and what comes of it."""
    host = f" and {setting.need.host / GB:.0f} GB of the machine's memory for each GPU" if setting.need.host else ""
    return f"{setting.overrides} ({setting.need.peak.total / GB:.1f} GB{host})"


def as_words(changes: Mapping[str, Any]) -> str:
    """Overrides as a command takes them."""
    shown = {key: "null" if value is None else str(value).lower() if isinstance(value, bool) else value for key, value in changes.items()}
    return " ".join(f"{key}={value}" for key, value in shown.items())
