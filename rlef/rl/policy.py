"""Policy and critic as modules that return one number a sampled token, so that an engine can wrap the whole computation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel

from reward_models.model import label_head
from rlef.errors import UserError
from rlef.rl.batch import Columns
from rlef.rl.logprobs import token_logprobs


def model_inputs(model: PreTrainedModel, batch: Columns) -> dict[str, Any]:
    """What `batch` is for a transformers model. Raises UserError where its attention takes no mask of a shared prompt."""
    mask = batch.attention_mask
    if mask.dim() == 2:  # padding is on the right, where a causal model never looks: without a mask its kernels skip what lies ahead
        return {"input_ids": batch.input_ids, "attention_mask": None, "position_ids": batch.position_ids, "use_cache": False}
    kernel = model.config._attn_implementation
    if kernel == "eager":  # added to the scores
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)
    elif kernel != "sdpa":
        raise UserError(f"share_prompts: {kernel} attention takes no such mask", fix="set share_prompts: false")
    return {"input_ids": batch.input_ids, "attention_mask": mask, "position_ids": batch.position_ids, "use_cache": False}


def products(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 while inside, where that is wanted; weights keep their precision."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def trunk_states(model: PreTrainedModel, batch: Columns) -> torch.Tensor:
    """(N, H) last hidden states at the states before the answers' tokens."""
    return model.base_model(**model_inputs(model, batch)).last_hidden_state[batch.sequence, batch.state]


def head_alone(model: PreTrainedModel) -> bool:
    """Whether the LM head on the last states gives the logits. Some families scale or cap them after it."""
    return not any(key in model.config.to_dict() for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"))


def lm_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """(N, V) of (N, H), where the head stands alone."""
    head: Any = model.get_output_embeddings()
    return head(states)


def spread_logprobs(
    logits: torch.Tensor, batch: Columns, width: int, temperature: float, *, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(b, width) log-probabilities and, where wanted, (b, width) entropies of (N, V) logits, fp32 or wider. Uses the logits up."""
    logprobs, spread = token_logprobs(logits, batch.token, temperature, entropy=entropy)
    return batch.spread(logprobs, width), batch.spread(spread, width) if spread is not None else None


class TokenPolicy(nn.Module):
    """log pi(token | state) at a temperature, and the entropy there. The LM head runs on answer positions only."""

    def __init__(self, model: PreTrainedModel, *, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16
        self._head_alone = head_alone(model)

    def forward(
        self, batch: Columns, width: int, temperature: float = 1.0, *, entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(b, width) log-probabilities and, where wanted, (b, width) entropies, fp32 or wider."""
        with products(batch.input_ids.device, self.bf16):
            if self._head_alone:
                logits = lm_logits(self.model, trunk_states(self.model, batch))
            else:
                logits = self.model(**model_inputs(self.model, batch)).logits[batch.sequence, batch.state]
        return spread_logprobs(logits, batch, width, temperature, entropy=entropy)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        self.model.save_pretrained(folder, **kwargs)


class ValueHead(nn.Linear):
    """A critic's head on states of another's trunk; it starts at zero, and stays out of bfloat16 products."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model.config.hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def of_states(self, states: torch.Tensor, batch: Columns, width: int) -> torch.Tensor:
        """(N, H) -> (b, width) values, fp32 or wider."""
        values = self(states.to(self.weight.dtype))[:, 0]
        return batch.spread(values.to(torch.promote_types(values.dtype, torch.float32)), width)


class TwoHeads(nn.Module):
    """Policy and critic on one trunk: its LM head, and a value head beside it."""

    def __init__(self, model: PreTrainedModel, *, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16
        self.head = ValueHead(model)
        self._head_alone = head_alone(model)

    def forward(
        self, batch: Columns, width: int, temperature: float = 1.0, *, entropy: bool = False, trunk_gradient: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """(b, width) log-probabilities, entropies (None unless wanted) and values of one pass through the trunk; with a gradient
        in the value head alone where the trunk is to have none."""
        with torch.set_grad_enabled(trunk_gradient and torch.is_grad_enabled()):
            with products(batch.input_ids.device, self.bf16):
                if self._head_alone:
                    states = trunk_states(self.model, batch)
                    logits = lm_logits(self.model, states)
                else:
                    output = self.model(**model_inputs(self.model, batch), output_hidden_states=True)
                    logits, states = (one[batch.sequence, batch.state] for one in (output.logits, output.hidden_states[-1]))
            told = spread_logprobs(logits, batch, width, temperature, entropy=entropy)
        return *told, self.head.of_states(states, batch, width)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        self.model.save_pretrained(folder, **kwargs)


class TokenCritic(nn.Module):
    """V(state before the token): a one-label token classifier read at the same columns as the policy."""

    def __init__(self, model: PreTrainedModel, *, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, dtype: str = "float32", trust_remote_code: bool = False, bf16: bool = False, **load: Any
    ) -> TokenCritic:
        """The trunk of `folder` with a fresh head of zeros: V = 0 everywhere at the start, so the first advantages are plain returns.

        A reward model's head is trained at step ends alone and would bias the values in between.
        """
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, **load)
        config.num_labels = 1
        for key in [name for name in config.to_dict() if name.endswith(("dropout", "pdrop"))]:
            setattr(config, key, 0.0)
        config.classifier_dropout = 0.0  # the default of AutoModelForTokenClassification heads is 0.1
        model = AutoModelForTokenClassification.from_pretrained(
            str(folder), config=config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code, **load
        )
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            for parameter in label_head(model)[1].parameters():
                parameter.zero_()
        model.get_input_embeddings().padding_idx = None
        return cls(model, bf16=bf16)

    def forward(self, batch: Columns, width: int) -> torch.Tensor:
        """(b, width) values, fp32 or wider."""
        with products(batch.input_ids.device, self.bf16):
            values = self.model(**model_inputs(self.model, batch)).logits[batch.sequence, batch.state, 0]
        return batch.spread(values.to(torch.promote_types(values.dtype, torch.float32)), width)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        self.model.save_pretrained(folder, **kwargs)
