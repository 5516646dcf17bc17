"""What a mistaken word or path may have meant."""

from __future__ import annotations

import pytest

from reward_models.nearest import meant, meant_path


@pytest.mark.parametrize("given,told", [("chekc", "; did you mean `check`?"), ("check", "; did you mean `check`?"), ("xyz", ""), ("", "")])
def test_a_word(given, told):
    assert meant(given, ["check", "convert"]) == told
    assert meant(given, []) == ""


@pytest.mark.parametrize(
    "given,near",
    [
        ("runs/one/prm", "runs/one/prm/model"),  # the folder of a stage
        ("runs/one/prn", "runs/one/prm"),
        ("runs/one/pmr/model", "runs/one/prm/model"),
        ("rusn/one/prm/model", "runs/one/prm/model"),
        ("runs/one/sfx/model", None),  # sft has none
        ("runs/one/prm/model", None),
        ("nothing/like/it", None),
        ("", None),
        ("runs/file.yml", "runs/file.yaml"),
        ("runs/file.yaml/x", None),
    ],
)
def test_a_path(tmp_path, monkeypatch, given, near):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one" / "prm" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "sft").mkdir()
    (tmp_path / "runs" / "file.yaml").touch()
    assert meant_path(given) == ("" if near is None else f"; did you mean `{near}`?")
    absolute = meant_path(tmp_path / given)
    assert absolute == ("" if near is None else f"; did you mean `{tmp_path / near}`?")
