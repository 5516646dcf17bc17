"""What a terminal is told of training."""

from __future__ import annotations

from types import SimpleNamespace

from reward_models import progress
from reward_models.progress import Progress


def test_steps_loss_and_the_time_left_are_told_now_and_then_by_the_first_process(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[-1])
    state = SimpleNamespace(global_step=20, max_steps=140, is_world_process_zero=True, log_history=[])
    bar = Progress(every_s=10.0)
    bar.on_train_begin(None, state, None)  # goes on from step 20
    for now, state.global_step in ((103.0, 21), (106.0, 22), (160.0, 40)):
        clock.append(now)
        bar.on_step_end(None, state, None)
        state.log_history += [{"loss": state.global_step / 100}, {"development": 0.5}]
    assert capsys.readouterr().err.splitlines() == ["step 21 of 140, 6.0 minutes left", "step 40 of 140, loss 0.220, 5.0 minutes left"]
    state.is_world_process_zero = False
    clock.append(300.0)
    bar.on_step_end(None, state, None)
    assert capsys.readouterr().err == ""
