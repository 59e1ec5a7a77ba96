"""The recipes as far as they go without a GPU: every key against verl's schema, data, reward."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
import yaml

pytest.importorskip("verl", reason="verl is not installed")

from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import OmegaConf

from entrocraft.verl.__main__ import arguments_for_verl
from entrocraft.verl.settings import method_of

RECIPE = Path(__file__).parents[2] / "recipes" / "numinamath"


def arguments_of(script, tmp_path, *more, **environment):
    """What a script hands to `python -m`, seen by a program in python's place."""
    witness = tmp_path / "python"
    witness.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    witness.chmod(0o755)
    done = subprocess.run(
        [str(RECIPE / script), *more],
        env=os.environ | {"PYTHON": str(witness)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    module, *arguments = done.stdout.splitlines()[1:]
    assert module == "entrocraft.verl"
    return arguments


@pytest.mark.parametrize("script", ["grpo.sh", "gspo.sh"])
def test_every_key_is_in_verls_schema(script, tmp_path):
    arguments = arguments_of(script, tmp_path, "trainer.total_epochs=2", NODES="2")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=arguments_for_verl(arguments))
    assert config.trainer.nnodes == 2
    assert config.trainer.total_epochs == 2
    method = method_of(config)
    actor = config.actor_rollout_ref.actor
    updates = config.data.train_batch_size // actor.ppo_mini_batch_size
    assert updates == 4
    assert method.target(0) == 0.6
    assert method.target(101 * updates) == pytest.approx(0.4)
    assert actor.policy_loss.loss_mode == ("gspo" if script == "gspo.sh" else "vanilla")
    assert Path(config.reward.custom_reward_function.path).exists()


def test_arguments_win_over_what_the_scripts_say(tmp_path):
    more = [
        "entrocraft.schedule=linear(0.65, 0.45, 404)",
        "entrocraft.rule=switch",
        "entrocraft.feedback.band=0.05",
    ]
    arguments = arguments_for_verl(arguments_of("grpo.sh", tmp_path, *more))
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=arguments)
    method = method_of(config)
    assert method.target(0) == 0.65
    assert method.rule.name == "switch"


def test_the_yaml_is_a_whole_configuration_and_arguments_win_over_it():
    # as with --config-dir and --config-name, where verl's own directory is the one to be added to
    arguments = ["hydra.searchpath=[pkg://verl.trainer.config]", "entrocraft.rule=sign"]
    with initialize_config_dir(str(RECIPE), version_base=None):
        config = compose("entropy", overrides=arguments_for_verl(arguments))
    assert config.actor_rollout_ref.actor.ppo_mini_batch_size > 0
    method = method_of(config)
    assert method.rule.name == "sign"
    assert method.target(404) == pytest.approx(0.4)


def test_the_yaml_says_what_the_scripts_say(tmp_path):
    section = OmegaConf.create(yaml.safe_load((RECIPE / "entropy.yaml").read_text()))
    assert method_of(section).target(202) == pytest.approx(0.5)
    [schedule] = [a for a in arguments_of("grpo.sh", tmp_path) if a.startswith("entrocraft.sched")]
    assert schedule.partition("=")[2] == section.entrocraft.schedule


def module(name):
    spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_answer_is_the_last_balanced_box():
    boxed = module("reward").boxed
    assert boxed(r"so \boxed{1}, no \boxed{\frac{1}{2}} it is") == r"\frac{1}{2}"
    assert boxed("none") is None
    assert boxed(r"\boxed{open") is None


def test_rows_are_written_in_verls_format(tmp_path):
    from datasets import Dataset

    prepare = module("prepare")
    rows = [prepare.row("1+1?", "2", "numina_math", 0), prepare.row("2+2?", "4", "numina_math", 1)]
    prepare.write(rows, tmp_path / "train.parquet")
    read = Dataset.from_parquet(str(tmp_path / "train.parquet"))
    assert len(read) == 2
    assert read[1]["reward_model"]["ground_truth"] == "4"
    assert [message["role"] for message in read[0]["prompt"]] == ["system", "user"]


@pytest.mark.slow
def test_the_reward_reads_answers_and_runs_none(tmp_path):
    from verl.utils.import_utils import load_extern_object

    score = load_extern_object(str(RECIPE / "reward.py"), "compute_score")
    assert score("numina_math", r"thus \boxed{\frac{2}{4}}", "1/2") == 1.0
    assert score("numina_math", r"thus \boxed{3}", "2") == 0.0
    trap = tmp_path / "trap"
    text = rf"\boxed{{__import__('os').system('touch {trap}')}}"
    assert score("numina_math", text, "2") == 0.0
    assert not trap.exists()
