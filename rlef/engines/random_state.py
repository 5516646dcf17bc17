"""The state of this process's random generators in a file, without pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save(file: Path) -> None:
    """Python's, numpy's, torch's and each GPU's."""
    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    name, keys, *rest = numpy.random.get_state(legacy=True)
    others = {"python": random.getstate(), "numpy": [name, numpy.asarray(keys).tolist(), *rest]}
    save_file(
        {str(number): state for number, state in enumerate(states)},
        file,
        metadata={key: json.dumps(value) for key, value in others.items()},
    )


def load(file: Path) -> None:
    """Nothing where the file is not there: of a run on fewer ranks."""
    if not file.is_file():
        return
    with safe_open(file, "pt") as stored:
        torch.set_rng_state(stored.get_tensor("0"))
        for device in range(min(torch.cuda.device_count(), len(stored.keys()) - 1)):
            torch.cuda.set_rng_state(stored.get_tensor(str(device + 1)), device)
        others = {key: json.loads(value) for key, value in stored.metadata().items()}
    version, inner, gauss = others["python"]
    random.setstate((version, tuple(inner), gauss))
    numpy.random.set_state(tuple(others["numpy"]))
