"""The request that OpenRLHF's remote reward client sends, turned into questions and answers.

It sends `prompts` as the policy read them, chat template included, and `query`, each prompt with its answer behind it and special tokens
spelt out. A question is what stands between the words that the reward model's own template puts around it; a prompt of another template
is read as it stands. An answer is what follows the prompt, without special tokens at its end.
"""

from __future__ import annotations

from typing import Any

MARK = "\x00question\x00"


class PromptReader:
    """Knows a reward model's template and special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._special = [token for token in tokenizer.all_special_tokens if token]
        self._before, self._after = "", ""
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], add_generation_prompt=True, tokenize=False)
            self._before, _, self._after = str(text).partition(MARK)

    def question(self, prompt: str) -> str:
        inside = prompt.removeprefix(self._before).removesuffix(self._after)
        return inside if len(prompt) - len(inside) == len(self._before) + len(self._after) else prompt

    def answer(self, query: str, prompt: str) -> str | None:
        """None where the query does not begin with its prompt, as where the prompt was cut."""
        if not query.startswith(prompt):
            return None
        answer = query[len(prompt) :].rstrip()
        while ending := next((token for token in self._special if answer.endswith(token)), None):
            answer = answer.removesuffix(ending).rstrip()
        return answer
