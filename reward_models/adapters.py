"""Low-rank adapters (LoRA, arXiv 2106.09685): the trunk stays as it is; what is trained are adapters, the head and unseen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from reward_models.config import LoraSettings
from reward_models.model import label_head

FOLDER = "adapter"  # beside the merged weights


def adapted(kind: str, model: PreTrainedModel, settings: LoraSettings, tokens: Sequence[int]) -> PeftModel:
    """Adapters on all linear layers. The head is trained and saved whole: one that is not saved would be drawn anew at loading. So are the
    embeddings of `tokens`, which the trunk has never seen. kind: "instruction" or "process"."""
    head, _ = label_head(model)
    own: dict[str, Any] = {"trainable_token_indices": list(tokens)} if tokens else {}
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS if kind == "instruction" else TaskType.TOKEN_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=[head],
        modules_to_save=[head],
        **own,
    )
    found = get_peft_model(model, lora)
    assert isinstance(found, PeftModel)
    return found


def merged(model: PreTrainedModel, adapter: str | Path) -> PreTrainedModel:
    """`model`, as it was before the training, with the saved adapter added into its weights."""
    trained: Any = PeftModel.from_pretrained(model, str(adapter))
    return trained.merge_and_unload()
