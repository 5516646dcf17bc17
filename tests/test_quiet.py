"""A normal run prints lines of ours alone, on one process and on two under DeepSpeed; what is wrong is still told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
OURS = [
    r"",
    r"\[\d+/\d+\] \w+( \.\.\.|: .*)",  # a stage begins, ends, tells its results
    r"  \w+(: \w+)?: \d+/\d+, [\d.]+ (s|min|h) left .*",  # progress
    r"  alarm: iteration \d+: .*",
    r"run directory: .*",
    r"report: .*",
]


def printed(*words, cwd=ROOT, path=None, **environment):
    """What a command prints, with nothing set that would silence it."""
    silenced = ("WANDB_MODE", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")
    kept = {key: value for key, value in os.environ.items() if key not in silenced}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [path, str(ROOT)]))
    return subprocess.run([sys.executable, *words], cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=900)


def foreign(text):
    return [line for line in text.splitlines() if not any(re.fullmatch(pattern, line) for pattern in OURS)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launch", [[], ["launch.processes=2", "launch.deepspeed=configs/deepspeed/zero2.json"]], ids=["one", "two"])
def test_a_run_prints_lines_of_ours_alone(tmp_path, launch):
    data = yaml.safe_load((ROOT / "tests" / "configs" / "tiny.yaml").read_text())
    if launch:
        data["stages"] = {name: settings for name, settings in data["stages"].items() if name not in ("irm", "dpo", "grpo", "evaluate")}
        data["stages"]["ppo"]["irm"] = "none"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    run = tmp_path / "run"
    done = printed("-m", "rlef", "run", str(tmp_path / "run.yaml"), f"run.dir={run}", "tracking.wandb=offline", *launch)
    assert done.returncode == 0, done.stderr
    assert foreign(done.stdout) == [] and foreign(done.stderr) == []
    if launch:
        return
    words = ["train", "irm", "--labels", run / "label" / "rankings.jsonl", "--init", run / "sft" / "model", "--out", tmp_path / "irm"]
    alone = printed("-m", "reward_models", *words, "--batch-size", "8")
    assert alone.returncode == 0 and alone.stdout.count("\n") == 1 and alone.stdout.startswith("{")
    assert [line for line in alone.stderr.splitlines() if not re.fullmatch(r"step \d+ of \d+, [\d.]+ minutes left", line)] == []


NOISY = {
    "deepspeed/__init__.py": "",
    "deepspeed/comm/__init__.py": "",
    "deepspeed/comm/torch.py": "print('imported')\ndef build():\n    print('operator built')\n    raise RuntimeError('it matters')\n",
    "noisy.py": "import logging, warnings\nwarnings.warn('old', FutureWarning)\nlogging.warning('beware')\nlogging.error('it is wrong')\n",
}
CODE = """
import sys
from reward_models.quiet import quiet
quiet()
import noisy
from deepspeed.comm import torch
try:
    torch.build()
except RuntimeError as error:
    print(error)
"""


def test_warnings_and_one_print_are_off_and_errors_are_not(tmp_path):
    for name, text in NOISY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = printed("-c", CODE, cwd=tmp_path, path=str(tmp_path))
    assert (done.stdout, done.stderr) == ("it matters\n", "ERROR:root:it is wrong\n")


def test_what_the_user_sets_holds():
    code = (
        "import os; from reward_models.quiet import quiet; quiet(); print(os.environ['TRANSFORMERS_VERBOSITY'], os.environ['TQDM_DISABLE'])"
    )
    assert printed("-c", code, TRANSFORMERS_VERBOSITY="info").stdout == "info 1\n"
