"""`rlef completion`: bash really completes commands, options, files, stages and keys; every key of the schema is known."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlef.cli import main
from rlef.commands.completion import SHELLS, keys
from rlef.commands.stage import STAGES
from rlef.load_config import load_config
from rlef.pipeline import REGISTRY

ROOT = Path(__file__).parents[2]
TRY = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _rlef; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "rlef.bash"
    file.write_text(
        subprocess.run([sys.executable, "-m", "rlef", "completion", "bash"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )

    def complete(line):
        done = subprocess.run(["bash", "-c", TRY, "bash", file, *line.split(" ")], cwd=ROOT, capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    "line,found",
    [
        ("rlef pla", ["plan"]),
        ("rlef gr", ["grpo"]),
        ("rlef run configs/quick", ["configs/quickstart.yaml"]),
        ("rlef run configs/quickstart.yaml --on", ["--only"]),
        ("rlef run configs/quickstart.yaml --from e", ["evolve", "evaluate"]),
        ("rlef run tests/configs/tiny.yaml --only g", ["grpo"]),
        ("rlef run configs/quickstart.yaml --only g", []),  # it has no grpo
        ("rlef run configs/quickstart.yaml ppo.it", ["ppo.iterations="]),
        ("rlef run configs/quickstart.yaml run.seed=1 --yes launch.deeps", ["launch.deepspeed="]),
        ("rlef ppo configs/quickstart.yaml ppo.rollout.sy", ["ppo.rollout.sync="]),
        ("rlef check configs/quickstart.yaml --gpu-", ["--gpu-memory"]),
        ("rlef init my.yaml --domain m", ["math"]),
        ("rlef completion f", ["fish"]),
    ],
)
def test_bash_completes(bash, line, found):
    assert bash(line) == found


def test_every_command_and_every_stage_is_offered(bash):
    assert {"init", "run", "check", "plan", "report", "doctor", "convert", "completion", *STAGES} <= set(bash("rlef "))
    assert {*STAGES, "report"} == set(REGISTRY)
    assert set(bash("rlef run c.yaml --from ")) == set(STAGES)  # no such file: the kinds
    assert {"run.seed=", "prm.lora.rank=", "teacher.prices.prompt=", "model.random.layers="} <= set(bash("rlef run c.yaml "))


def test_its_keys_are_those_of_the_schema():
    found = keys()
    assert len(found) == len(set(found)) > 300
    of_quickstart = load_config(ROOT / "configs" / "quickstart.yaml", ["model.random=null", "model.path=a/b"])
    for name, stage in of_quickstart.stages.items():
        assert {f"{name}.{key}=" for key in type(stage).model_fields if key not in ("rollout", "lora")} <= set(found)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_that_it_reads(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "ppo.iterations=" in text and "quickstart" not in text
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
