"""Makes the teacher that the config asks for."""

from __future__ import annotations

from rlef.config import Config
from rlef.evolution.chat import ChatTeacher
from rlef.rollout.remote import HFChat, OpenAIChat
from rlef.symbolic import SymbolicTeacher


def make_teacher(config: Config) -> SymbolicTeacher | ChatTeacher:
    """symbolic: no model; hf: a model in this process; openai: any OpenAI-compatible endpoint."""
    teacher = config.teacher
    if teacher.kind == "symbolic":
        depths = [stage.max_depth for stage in config.stages.values() if stage.kind == "evolve"]
        numbers = [stage.max_number for stage in config.stages.values() if stage.kind == "problems"]
        rates = {"flaw_rate": teacher.flaw_rate, "misread_rate": teacher.misread_rate}
        return SymbolicTeacher(**rates, max_depth=max(depths, default=5), max_number=max(numbers, default=12))
    if teacher.kind == "openai":
        assert teacher.model is not None and teacher.base_url is not None  # the schema sees to it
        chat = OpenAIChat(
            model=teacher.model,
            base_url=teacher.base_url,
            api_key_env=teacher.api_key_env,
            concurrency=teacher.concurrency,
            timeout_s=teacher.timeout_s,
            retries=teacher.retries,
        )
        return ChatTeacher(chat, config.model, temperature=teacher.temperature, max_tokens=teacher.max_tokens)
    from rlef.models import load_policy, load_tokenizer, pick_device, resolve_path, stop_ids
    from rlef.rollout.hf import HFGenerator

    own = teacher.model is not None
    path = resolve_path(teacher.model or str(config.model.path))
    gguf = teacher.gguf_file if own else config.model.gguf_file
    tokenizer = load_tokenizer(path, gguf_file=gguf)
    model = load_policy(path, gguf_file=gguf, dtype=config.model.dtype, device=pick_device(config.launch.device))
    stops = stop_ids(tokenizer, model)
    return ChatTeacher(
        HFChat(
            str(teacher.model or config.model.path), HFGenerator(model, int(tokenizer.pad_token_id), teacher.batch_size), tokenizer, stops
        ),
        config.model,
        temperature=teacher.temperature,
        max_tokens=teacher.max_tokens,
    )
