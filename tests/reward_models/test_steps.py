"""19: text to steps to tokens, in bytes, over three kinds of tokenizer."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward_models.data import step_columns
from reward_models.steps import split_steps, step_end_tokens, token_byte_spans

TEXTS = st.lists(st.sampled_from(["Ann 3+4=7", "naïve — 数学", "😀", " ", "", ".", "\\frac{1}{2}", "#### 7", "a b"]), max_size=6)


@given(TEXTS, st.sampled_from(["\n", "\n\n"]), st.booleans())
def test_steps_cover_the_bytes_in_order(parts, delimiter, closed):
    text = delimiter.join(parts) + (delimiter if closed and parts else "")
    steps = split_steps(text, delimiter)
    data = text.encode()
    assert [step.text for step in steps] == [part.strip() for part in text.split(delimiter) if part.strip()]
    position = 0
    for step in steps:
        assert step.start == position and step.text in data[step.start : step.end].decode()
        assert not step.closed or data[: step.end].endswith(delimiter.encode())
        position = step.end
    assert not data[position:].decode().replace(delimiter, "").strip()
    assert all(step.closed for step in steps[:-1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(parts=TEXTS)
def test_spans_add_up_to_the_decoded_bytes(any_tokenizer, parts):
    text = "\n".join(parts)
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    decoded = any_tokenizer.decode(ids, skip_special_tokens=True)
    spans = token_byte_spans(any_tokenizer, ids)
    assert all(start == before for (start, _), (_, before) in zip(spans[1:], spans[:-1], strict=True))
    assert (spans[-1][1] if spans else 0) == len(decoded.encode())
    for place, (_, end) in enumerate(spans):
        prefix = any_tokenizer.decode(ids[: place + 1], skip_special_tokens=True)
        if "\ufffd" not in prefix:  # else it ends inside a character
            assert decoded.startswith(prefix) and end == len(prefix.encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(parts=TEXTS)
def test_a_steps_token_is_the_first_that_reaches_its_end(any_tokenizer, parts):
    ids = any_tokenizer.encode("\n".join(parts), add_special_tokens=False)
    text = any_tokenizer.decode(ids, skip_special_tokens=True)
    steps = split_steps(text)
    ends = [end for _, end in token_byte_spans(any_tokenizer, ids)]
    places = step_end_tokens(ends, steps)
    assert len(places) == len(steps) and places == sorted(places)
    for place, step in zip(places, steps, strict=True):
        assert ends[place] >= step.end and (place == 0 or ends[place - 1] < step.end)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(parts=TEXTS)
def test_a_closed_step_is_known_at_its_token(any_tokenizer, parts):
    """A reward placed there depends on nothing later: the answer cut after that token has the same steps up to it, one token earlier not."""
    ids = any_tokenizer.encode("\n\n".join(parts), add_special_tokens=False)
    steps = split_steps(any_tokenizer.decode(ids, skip_special_tokens=True), "\n\n")
    ends = [end for _, end in token_byte_spans(any_tokenizer, ids)]
    for number, (place, step) in enumerate(zip(step_end_tokens(ends, steps), steps, strict=True)):
        if step.closed:
            cut = split_steps(any_tokenizer.decode(ids[: place + 1], skip_special_tokens=True), "\n\n")
            assert cut[: number + 1] == steps[: number + 1]
            assert step not in split_steps(any_tokenizer.decode(ids[:place], skip_special_tokens=True), "\n\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(parts=TEXTS, question=st.sampled_from(["Ann has 3 pens.\nHow many?", "数学 <|step|> 😀", ""]))
def test_as_many_separators_as_steps_each_after_its_own_step(any_tokenizer, parts, question):
    """Ids are concatenated, never a joined string: no text can merge with a separator or write one."""
    tokenizer = copy.deepcopy(any_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|step|>"]})
    steps = [step.text for step in split_steps("\n".join(parts))] + ["a <|step|> b"]
    read = step_columns(tokenizer, question, steps, "<|step|>")
    mark = tokenizer.convert_tokens_to_ids("<|step|>")
    assert len(read.columns) == len(steps) and all(read.ids[column] == mark for column in read.columns)
    assert read.ids[read.start :].count(mark) == len(steps)
    for step, start, column in zip(steps, [read.start, *(column + 1 for column in read.columns)], read.columns, strict=False):
        alone = [token for token in tokenizer.encode(step + "\n", add_special_tokens=False) if token != mark]
        assert read.ids[start:column] == alone


def test_a_merged_delimiter_belongs_to_the_earlier_step(any_tokenizer):
    ids = any_tokenizer.encode("A.\n\nSo B.\n\n7", add_special_tokens=False)
    steps = split_steps(any_tokenizer.decode(ids), "\n\n")
    assert [step.text for step in steps] == ["A.", "So B.", "7"]
    places = step_end_tokens([end for _, end in token_byte_spans(any_tokenizer, ids)], steps)
    assert places[0] < places[1] <= places[2] == len(ids) - 1


def test_special_tokens_take_no_bytes(any_tokenizer):
    ids = [*any_tokenizer.encode("7", add_special_tokens=False), any_tokenizer.eos_token_id]
    assert token_byte_spans(any_tokenizer, ids)[-1][0] == token_byte_spans(any_tokenizer, ids)[-1][1]


@pytest.mark.parametrize("text", ["", "\n", " \n \n"])
def test_nothing_written_has_no_step(text):
    assert split_steps(text) == [] and step_end_tokens([], []) == []
