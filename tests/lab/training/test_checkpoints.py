"""Checkpoints: cut files are found, and the last ones are kept by step."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from entrocraft.lab.training.checkpoints import (
    RotationByStep,
    StopOnSignal,
    by_step,
    lacking,
    problem_of,
)
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.directory import RunDirectory

FILES = ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"]


def checkpoint(folder, step):
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.arange(9.0)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, path / name)
    (path / "trainer_state.json").write_text(f'{{"global_step": {step}, "log_history": []}}')
    return path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 7, -1])
def test_a_cut_file_is_found_and_the_checkpoint_before_is_taken(tmp_path, name, left):
    before, last = checkpoint(tmp_path, 8), checkpoint(tmp_path, 10)
    directory = RunDirectory(tmp_path)
    assert directory.last_checkpoint() == str(last)
    assert directory.last_checkpoint(below=10) == str(before)
    file = last / name
    file.write_bytes(file.read_bytes()[:left])
    with pytest.warns(UserWarning, match=rf"checkpoint-10 is not used: {name} is cut or broken"):
        assert directory.last_checkpoint() == str(before)
    file.unlink()
    if name in ("model.safetensors", "trainer_state.json"):
        assert problem_of(last).startswith("it has no ")
    else:
        assert problem_of(last) is None
        assert len(lacking(last)) == 1


def test_whole_ones_lack_nothing(tmp_path):
    assert lacking(checkpoint(tmp_path, 3)) == []


def test_a_clock_that_was_set_back_deletes_no_new_checkpoint(tmp_path):
    for step in (2, 10, 9, 8):
        os.utime(checkpoint(tmp_path, step), (1e9 - step, 1e9 - step))
    args = SimpleNamespace(output_dir=str(tmp_path / "checkpoints"))
    state = SimpleNamespace(is_world_process_zero=True, best_model_checkpoint=None)
    RotationByStep(None).on_save(args, state, None)
    assert list(by_step(tmp_path / "checkpoints")) == [2, 8, 9, 10]
    RotationByStep(2).on_save(args, state, None)
    assert list(by_step(tmp_path / "checkpoints")) == [9, 10]


def test_what_does_not_change_the_numbers_is_no_other_run(tmp_path):
    control = {"schedule": "linear(0.6,0.30,150)"}
    from entrocraft.settings import ControlSettings

    directory = RunDirectory(tmp_path)
    directory.claim(TrainConfig(output=tmp_path, control=ControlSettings(**control)))
    checkpoint(tmp_path, 2)
    same = ControlSettings(schedule="linear(0.6, 0.3, 150)")
    directory.check(TrainConfig(output=tmp_path, control=same, save_every=7, micro_batch=16))
    other = ControlSettings(schedule="linear(0.6, 0.31, 150)")
    with pytest.raises(ValueError, match=r"control\.schedule="):
        directory.check(TrainConfig(output=tmp_path, control=other))


def test_a_sigterm_saves_and_stops_at_the_end_of_the_rollout_batch():
    stopping, own = StopOnSignal(cycle=2), signal.getsignal(signal.SIGTERM)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    stopping.on_train_begin(None, None, control)
    seen = []
    for step in (1, 2, 3, 4):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        stopping.on_step_end(None, SimpleNamespace(global_step=step), control)
        seen.append((control.should_save, control.should_training_stop))
    stopping.on_train_end(None, None, control)
    assert seen == [(False, False)] * 3 + [(True, True)]
    assert signal.getsignal(signal.SIGTERM) is own
