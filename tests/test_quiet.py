"""Third parties say nothing, what is wrong is still told. That whole runs print lines of ours alone: test_whole_loop, distributed/test_ranks."""

from __future__ import annotations

from tests.printed import printed

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
