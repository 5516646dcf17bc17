"""From the text of a solution to its steps, and from steps to the policy's tokens that end them: all offsets are bytes of UTF-8.

A step's end is the byte that makes its boundary final: the end of the delimiter, or the end of the text for a last step that no
delimiter closed. Anything earlier would depend on tokens still to come.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step: its text without surrounding space, and the bytes [start, end) that it takes with its delimiter."""

    text: str
    start: int
    end: int
    closed: bool


def split_steps(text: str, delimiter: str = "\n") -> list[Step]:
    """Steps in order. Blank pieces are no steps: their bytes belong to the step after them, at the end to none."""
    steps: list[Step] = []
    start = position = 0
    pieces = text.split(delimiter)
    for index, piece in enumerate(pieces):
        closed = index < len(pieces) - 1
        position += len((piece + (delimiter if closed else "")).encode())
        if piece.strip():
            steps.append(Step(piece.strip(), start, position, closed))
            start = position
    return steps


def until_answer(steps: Sequence[Step], marker: str) -> list[Step]:
    """Steps up to and including the first that holds `marker`, all where none does: what follows the final answer is not scored."""
    last = next((place for place, step in enumerate(steps) if marker in step.text), len(steps) - 1)
    return list(steps[: last + 1])


def step_end_tokens(token_ends: Sequence[int], steps: Sequence[Step]) -> list[int]:
    """For each step the first token whose bytes reach the step's end; never decreasing. A token that merges a delimiter with what
    follows still belongs to the earlier step. Two steps may end in one token. Needs at least one token where there is a step."""
    places, token = [], 0
    for step in steps:
        while token < len(token_ends) - 1 and token_ends[token] < step.end:
            token += 1
        places.append(token)
    return places


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def token_byte_spans(tokenizer: Any, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Bytes [start, end) of the decoded text that each token makes. Special tokens make none.

    Read from the token pieces, not from decoded prefixes: a prefix may end inside a character. Knows byte-level BPE (GPT-2, Llama 3,
    Qwen), SentencePiece pieces with <0xNN> fallback and characters.
    """
    special = set(tokenizer.all_special_ids)
    byte_level = _is_byte_level(tokenizer)
    spans, position = [], 0
    for place, token in enumerate(ids):
        length = 0
        if token not in special:
            piece = tokenizer.convert_ids_to_tokens([int(token)])[0]
            length = _piece_length(piece, byte_level, first=place == 0)
        spans.append((position, position + length))
        position += length
    return spans


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return "ByteLevel" in repr(decoder) if decoder is not None else False


def _piece_length(piece: str, byte_level: bool, *, first: bool) -> int:
    if byte_level:
        # Added tokens are written as plain text and may hold characters outside the byte alphabet.
        return sum(1 if character in _ALPHABET else len(character.encode()) for character in piece)
    if _BYTE.fullmatch(piece):
        return 1
    # SentencePiece decoders strip the blank that they put before the first word; a blank of the text's own they keep.
    return len((piece[1:] if first and piece.startswith("▁") else piece).replace("▁", " ").encode())
