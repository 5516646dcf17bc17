"""Where PPO's answers are sampled: by the trained model itself, or by vLLM, in this process or a server, that its weights are sent to."""

from __future__ import annotations

import shlex
from pathlib import Path

from transformers import PreTrainedModel

from rlef.config import COLOCATED_SHARE, PpoStage
from rlef.engines import dist
from rlef.engines.deepspeed_engine import divided
from rlef.errors import UserError
from rlef.models import Tokenizer, load_policy, pick_device, prompt_ids
from rlef.rollout.base import Generator
from rlef.rollout.colocated import ColocatedGenerator
from rlef.rollout.hf import CopyGenerator, HFGenerator
from rlef.rollout.own_server import OwnServer
from rlef.rollout.served import ServedGenerator
from rlef.rollout.synced import Nccl, Reload, SyncedGenerator, serve_flags
from rlef.stages.context import StageContext

PROBE = "How many are 3 and 4?"
# Nats a token of the probe, on average. Two ways through the same bfloat16 weights are 0.03 to 0.06 apart in SmolLM2-135M, 0.005 in the
# quickstart's policy.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def make_generator(ctx: StageContext, model: PreTrainedModel, tokenizer: Tokenizer, start: Path) -> Generator:
    """The sampler of `model`, which is trained from `start`. All ranks call it."""
    settings: PpoStage = ctx.settings
    rollout, main, dtype = settings.rollout, dist.is_main(), ctx.config.model.dtype
    device, pad = pick_device(ctx.config.launch.device), int(tokenizer.pad_token_id)
    if rollout.by_policy and divided(model):
        copy = load_policy(start, dtype=dtype, trust_remote_code=ctx.config.model.trust_remote_code, device=device)
        return CopyGenerator(copy, pad, settings.rollout_batch_size)
    if rollout.by_policy:
        return HFGenerator(model, pad, settings.rollout_batch_size)
    probe, tolerance = prompt_ids(tokenizer, PROBE, ctx.config.model), rollout.tolerance or TOLERANCE[dtype]
    if rollout.colocated:
        options = colocated_options(settings, on_cpu=device.type == "cpu", dtype=dtype, ranks=dist.world())
        return ColocatedGenerator(str(start), options, model, probe, tolerance=tolerance, timeout_s=rollout.timeout_s)
    flags = [*serve_flags(sync=rollout.sync, on_cpu=device.type == "cpu", dtype=dtype), *shlex.split(rollout.options)]
    command = [rollout.vllm or "vllm", "serve", str(start), *flags]
    folder = ctx.folder / "served"

    # 1. The server, which holds some policy of this shape.
    own = OwnServer(command, folder.parent / "server.log", rollout.gpus) if rollout.vllm is not None and main else None
    url = dist.broadcast_object(own.url if own is not None else rollout.server)
    assert url is not None
    server = ServedGenerator(
        url,
        str(start),
        concurrency=settings.rollout_batch_size,
        timeout_s=rollout.timeout_s,
        start=f"VLLM_SERVER_DEV_MODE=1 {shlex.join(command)}",
    )

    # 2. The way that weights take to it.
    if rollout.sync == "reload":
        send = Reload(server, model, folder, timeout_s=rollout.timeout_s, main=main)
    else:
        send = Nccl(server, _client(url, rollout.timeout_s) if main else None, device, timeout_s=rollout.timeout_s, main=main)
    return SyncedGenerator(
        server,
        send,
        model,
        probe,
        of=str(ctx.folder.resolve()),
        tolerance=tolerance,
        timeout_s=rollout.timeout_s,
        main=main,
        barrier=dist.barrier,
        own=own,
    )


def colocated_options(settings: PpoStage, *, on_cpu: bool, dtype: str, ranks: int) -> list[str]:
    """Of an engine in this process, as of `vllm serve`; of an option given twice the last one holds."""
    options = serve_flags(sync="reload", on_cpu=on_cpu, dtype=dtype)
    options += ["--gpu-memory-utilization", str(COLOCATED_SHARE), "--max-num-seqs", str(settings.rollout_batch_size)]
    if ranks > 1:  # an engine of its own for each rank, in the group that torchrun has announced
        options += ["--distributed-executor-backend", "external_launcher"]
    return [*options, *shlex.split(settings.rollout.options)]


def _client(url: str, timeout_s: float):
    """TRL's, which imports the vllm that is installed here."""
    try:
        from trl.generation.vllm_client import VLLMClient

        return VLLMClient(base_url=url.removesuffix("/v1"), connection_timeout=timeout_s)
    except ImportError as error:
        raise UserError(f"rollout.sync: nccl: {error}", fix="pip install a vllm that trl knows, or use sync: reload") from error
