"""What holds of an engine apart from its steps: nothing moves at lr 0, bf16 sums in fp32, one process needs no group."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from rlef.engines import dist, make_engine
from rlef.engines.torch_engine import TorchEngine


def test_10_learning_rate_0_leaves_every_weight_bitwise(tiny):
    model, _ = tiny
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = make_engine(model, deepspeed_json=None, lr=0.0, weight_decay=0.1)
    for seed in range(3):
        ids = torch.randint(0, 280, (2, 9), generator=torch.Generator().manual_seed(seed))
        engine.backward(engine.forward(input_ids=ids, labels=ids).loss, last=True)
        assert engine.step().grad_norm > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bf16_gradients_of_micro_batches_are_summed_in_fp32():
    """300 gradients of 1 onto one of 1: in bf16 the sum sticks at 256."""
    engine = TorchEngine(nn.Linear(1, 1, bias=False).bfloat16(), lr=1e-3)
    for number in range(300):
        engine.backward(engine.forward(torch.ones(1, 1, dtype=torch.bfloat16)).sum(), last=number == 299)
    assert engine.step().grad_norm == 300.0


def test_save_model_writes_what_from_pretrained_loads(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    model, _ = tiny
    make_engine(model, deepspeed_json=None, lr=1e-3).save_model(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_without_a_process_group_everything_is_the_identity(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    dist.init("cpu")
    tensor = torch.arange(3)
    assert not dist.active() and dist.rank() == 0 and dist.world() == 1 and dist.is_main()
    assert torch.equal(dist.all_reduce_sum(tensor), tensor) and torch.equal(dist.all_reduce_max(tensor), tensor)
    assert dist.all_gather_object("x") == ["x"] and dist.broadcast_object("x") == "x"
    dist.barrier()


@pytest.mark.slow
def test_deepspeed_settings_keep_the_users_and_decide_the_rest(tmp_path):
    from rlef.engines.deepspeed_engine import _settings

    path = tmp_path / "zero.json"
    user = {
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "optimizer": {"type": "Adam"},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 0, "reduce_bucket_size": "auto", "overlap_comm": False},
    }
    path.write_text(json.dumps(user))
    full = _settings(str(path), 0.7, half=False)
    assert full["gradient_clipping"] == 0.7 and full["gradient_accumulation_steps"] == full["train_micro_batch_size_per_gpu"] == 1
    assert full["zero_optimization"] == {"stage": 0, "overlap_comm": False} and full["bf16"] == {"enabled": False}
    assert "optimizer" not in full and "train_batch_size" not in full
    half = _settings(str(path), 0.7, half=True)
    assert half["bf16"] == {"enabled": True, "check_grad_overflow": True} and half["zero_optimization"]["stage"] == 1


@pytest.mark.slow
def test_a_missing_deepspeed_checkpoint_is_the_users_mistake(tmp_path):
    """In a process of its own group, which no other test may see."""
    import subprocess
    import sys

    code = (
        "import sys; from torch import nn; from rlef.engines import make_engine; from reward_models.errors import UserError; from pathlib import Path\n"
        "engine = make_engine(nn.Linear(2, 2), deepspeed_json=sys.argv[1], lr=1e-3)\n"
        "try: engine.load(Path(sys.argv[2]))\n"
        "except UserError: sys.exit(5)\n"
    )
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    done = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "none")], capture_output=True, text=True, timeout=200)
    assert done.returncode == 5, done.stderr[-3000:]
