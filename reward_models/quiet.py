"""Third-party chatter off, for the command lines: what matters of it becomes an error of ours."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TQDM_DISABLE": "1",  # bars of loading and saving; ours are rich's
    "PYTHONWARNINGS": "ignore",  # for the processes that torchrun starts
}
PRINTS = "deepspeed.comm.torch"  # says by print() that an operator is built, on every rank


def quiet() -> None:
    """Of this process and those that it starts. What the user has set in the environment holds."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if not any(isinstance(finder, _Silent) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Silent())


class _Silent:
    """A finder of `sys.meta_path`: imports the one module that prints with a `print` of its own that does nothing."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != PRINTS:
            return None
        sys.meta_path.remove(self)  # once, and the search below must not end here again
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                vars(module)["print"] = lambda *words, **how: None
                run(module)

            spec.loader.exec_module = exec_module
        return spec
