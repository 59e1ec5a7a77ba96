"""The plug-in's ways into verl, its settings and state, without starting a cluster."""

import inspect
import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")

from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.trainer.ppo.v1.utils import MetricsAggregator
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig, OptimizerConfig, PolicyLossConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.adapter import Processes
from entrocraft.effects import token_statistics
from entrocraft.methods import METHODS, get_method
from entrocraft.rollouts import StepInfo
from entrocraft.storage import write_checkpoint
from entrocraft.verl import adapter, plugin
from entrocraft.verl.__main__ import _prepare, arguments_for_verl
from entrocraft.verl.checkpoint import checkpoint_folder, read_state
from entrocraft.verl.engine import FLAG, SENSITIVITY
from entrocraft.verl.plugin import MODES, trainer_name
from entrocraft.verl.settings import method_of
from entrocraft.verl.trainers import EntropyControlMixin, EntropyControlSync, check_seams
from entrocraft.verl.trajectories import Trajectories
from tests.verl.test_trajectories import make_rows


def actor_config(**changes):
    """verl's settings of an actor with its defaults."""
    given = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1}
    return ActorConfig(**given, optim=OptimizerConfig(lr=1e-6), **changes)


# ---------------------------------------------------------------- ways in

NAMES = "from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY as r; "
SHOW = NAMES + "import verl.trainer.ppo.v1; print(sorted(n for n in r if n[:5] == 'entro'))"


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "environment"),
    [
        (SHOW, {"VERL_USE_EXTERNAL_MODULES": "entrocraft.verl"}),
        (SHOW, {"VERL_USE_EXTERNAL_PLUGINS": "auto"}),
        # a Ray worker may import the plug-in first
        ("import entrocraft.verl; " + SHOW, {}),
    ],
    ids=["external modules", "entry point", "imported first"],
)
def test_verl_knows_the_trainers_by_every_way_in(code, environment):
    done = python(code, **environment)
    assert str(sorted(map(trainer_name, MODES))) in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_without_the_plug_in_verl_knows_none():
    assert "[]" in python(SHOW).stdout


def test_importing_the_plug_in_loads_no_trainer():
    code = "import entrocraft.verl, sys; print('verl.trainer.ppo.v1' in sys.modules)"
    assert "False" in python(code).stdout


def test_a_missing_dependency_is_told_although_verl_swallows_it():
    # an entry of None makes an import fail
    code = "import sys; sys.modules['wrapt'] = None; import verl"
    done = python(code, VERL_USE_EXTERNAL_PLUGINS="auto")
    assert done.returncode == 0
    assert "no entropy control: " in done.stderr
    assert "wrapt" in done.stderr
    assert "pip install 'entrocraft[verl]'" in done.stderr


def test_trainers_are_verls_with_the_mixin_before():
    for mode in MODES:
        controlled, plain = get_trainer_cls(trainer_name(mode)), get_trainer_cls(mode)
        assert issubclass(controlled, plain)
        assert controlled.__mro__[1] is EntropyControlMixin
        assert controlled.mode == mode


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("loss", ["vanilla", "gspo", "sapo", "geo_mean", "clip_cov", "cispo"])
def test_tokens_are_weighed_as_verls_losses_weigh_them(loss, aggregation):
    actor = actor_config(policy_loss=PolicyLossConfig(loss_mode=loss), loss_agg_mode=aggregation)
    mask = torch.arange(20) < torch.tensor([2, 20])[:, None]
    logprobs = torch.zeros(2, 20, requires_grad=True)
    settings = {"response_mask": mask.float(), "loss_agg_mode": aggregation, "config": actor}
    value, _ = get_policy_loss_fn(loss)(torch.zeros(2, 20), logprobs, torch.ones(2, 20), **settings)
    [gradient] = torch.autograd.grad(value, logprobs)
    section = OmegaConf.create({"loss_agg_mode": aggregation, "policy_loss": {"loss_mode": loss}})
    ratio = 10.0 if adapter.averages_rows(section) else 1.0
    assert float(gradient[0, 0] / gradient[1, 0]) == pytest.approx(ratio, rel=1e-4)


def test_a_measurement_after_an_update_that_distils_asks_for_no_distillation(monkeypatch):
    class Engine:
        def compute_log_prob(self, batch):
            asked.update(batch.extra_info)

    asked = {}
    left = {"distillation_use_topk": True, "distillation_only": True, "mini_batch_size": 8}
    batch = SimpleNamespace(extra_info=dict(left))
    trainer = object.__new__(EntropyControlMixin)
    trainer.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"temperature": 0.7}}})
    trainer.actor_rollout_wg = Engine()
    nested = torch.nested.nested_tensor([torch.ones(3)], layout=torch.jagged)
    columns = {"log_probs": nested, "entropy": nested, "response_mask": nested}
    fetched = lambda batch, names: {name: columns[name] for name in names}  # noqa: E731
    monkeypatch.setattr(adapter, "_fetch", fetched)
    monkeypatch.setattr(adapter, "response_from_nested", lambda values, mask: values)
    monkeypatch.setattr(adapter.tq, "kv_batch_put", lambda **put: None)
    batch.keys = batch.partition_id = None
    adapter.measure(trainer, batch)
    assert (asked["distillation_use_topk"], asked["distillation_only"]) == (False, False)
    assert asked["temperature"] == 0.7
    assert batch.extra_info == left


def training_batch(method, rows):
    batch = object.__new__(adapter.TrainingBatch)
    batch.method, batch.processes, batch._step = method, Processes(), StepInfo(3)
    batch._rollouts = Trajectories(rows)
    batch._trained = rows.advantages.abs().sum(1)
    return batch


def test_methods_that_weigh_tokens_start_from_each_tokens_own_advantage():
    rows = make_rows()
    tokens = torch.randn(rows.mask.shape, generator=torch.Generator().manual_seed(1)) * rows.mask
    batch = training_batch(get_method("clip_b", mu=1e6), rows)  # nothing is clipped
    assert torch.allclose(batch._reweighed(tokens), tokens)


@pytest.mark.parametrize("trigger", [0, 1])
def test_only_a_steps_first_mini_batch_is_measured_again(trigger):
    class Base:
        def _update_actor(self, batch, metrics):
            return batch

    class Trainer(EntropyControlMixin, Base):
        def _steps_of(self, batch):
            return 1.0

    rows, metrics = make_rows(), {}
    trainer = object.__new__(Trainer)
    trainer.entropy_control = EntropyController("0.5", remeasure=0.25)
    trainer.local_trigger_step = trigger
    trainer._optimizer_steps = 3.0
    trainer._before = training_batch(trainer.entropy_control, rows)
    scored = []

    def score(chosen):
        scored.extend(chosen.tolist())
        return rows.logprobs[chosen], rows.entropies[chosen] + 0.1

    trainer._before.score = score
    trainer._update_actor("batch", metrics)
    assert trainer._optimizer_steps == 4.0
    if trigger:
        assert not scored
    else:
        prompts = {rows.keys[row].rsplit("_", 2)[0] for row in scored}
        everyone = {key.rsplit("_", 2)[0] for key in rows.keys}
        assert len(prompts) == max(1, round(len(everyone) / 4)) < len(everyone)
        assert metrics["entropy/post_update_change"] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(("micro", "workers", "rows_scored"), [(1, 1, 4), (2, 2, 4), (3, 2, 6)])
def test_rows_are_scored_in_numbers_that_workers_can_share(
    micro, workers, rows_scored, monkeypatch
):
    rows = make_rows(prompts=6, generations=4)
    batch = training_batch(EntropyController("0.5"), rows)
    batch._trainer = SimpleNamespace(
        config=OmegaConf.create(
            {"actor_rollout_ref": {"rollout": {"log_prob_micro_batch_size_per_gpu": micro}}}
        ),
        actor_rollout_wg=SimpleNamespace(world_size=workers),
    )

    class Meta:
        def __init__(self, keys):
            self.keys = keys

        def select_keys(self, keys):
            return Meta(keys)

    batch.batch = Meta(rows.keys)

    def measure(trainer, part, sensitivity=False):
        assert len(part.keys) == rows_scored
        place = torch.tensor([rows.keys.index(key) for key in part.keys])
        return {"logprobs": rows.logprobs[place], "entropies": rows.entropies[place]}

    monkeypatch.setattr(adapter, "measure", measure)
    chosen = torch.tensor([4, 5, 6, 7])
    logprobs, entropies = batch.score(chosen)
    assert torch.equal(logprobs, rows.logprobs[chosen])
    assert torch.equal(entropies, rows.entropies[chosen])


def test_an_unknown_verl_is_refused_loudly(monkeypatch, caplog):
    monkeypatch.setattr(plugin, "version", lambda name: "0.8.0")
    with pytest.raises(RuntimeError, match=r"verl 0\.8\.0 is installed, entrocraft knows verl"):
        plugin.install()
    assert "no entropy control: verl 0.8.0" in caplog.text


def test_a_trainer_with_other_methods_is_refused():
    class Renamed:
        def fit(self, agent_loop_manager): ...
        def _compute_old_log_prob(self, batch, metrics, extra): ...

    with pytest.raises(RuntimeError, match=r"Renamed._compute_old_log_prob takes \(self, batch, m"):
        check_seams(Renamed)
    with pytest.raises(RuntimeError, match=r"object\.fit is missing"):
        check_seams(object)


# ---------------------------------------------------------------- settings


def config(**keys):
    return OmegaConf.create({"entrocraft": keys})


def test_keys_are_those_of_the_yaml_files():
    method = method_of(
        config(schedule="linear(0.6, 0.4, 800)", rule="sign", feedback={"band": 0.1}, seed=4)
    )
    assert isinstance(method, EntropyController)
    assert (method.target(400), method.seed, method.rule.name) == (0.5, 4, "sign")
    assert method.feedback.low == -0.1
    assert method_of(config(rule="qae", options={"quantile": 0.3})).quantile == 0.3


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (OmegaConf.create({}), "no entropy control is configured; add a schedule"),
        (OmegaConf.create({"entrocraft": 3}), "entrocraft is 3; it has keys"),
        (config(schedul="0.4"), "schedul"),
        (config(rule="tilt"), "a rule needs a schedule"),
        (config(schedule="linear(1)"), "linear"),
        (config(schedule="0.4", seed="x"), "entrocraft.seed is 'x'"),
        (config(schedule="0.4", effect="gradient"), "unknown effect level 'gradient'"),
        (config(schedule="0.4", drop_rejected=True), "drop_rejected is for TRL: verl's mini-b"),
        (config(rule="clip_cov"), "'clip_cov' works inside the trainer's loss or on its options"),
    ],
)
def test_wrong_settings_are_refused(section, message):
    with pytest.raises(ValueError, match=message):
        method_of(section)


def test_methods_that_work_on_advantages_are_hosted():
    hosted = set()
    for name in METHODS:
        try:
            method_of(config(rule=name))
        except ValueError:
            continue
        hosted.add(name)
    on_rollouts = {
        "raft++",
        "reinforce_rej",
        "psr",
        "nsr",
        "w_reinforce",
        "qae",
        "maxrl",
        "entropic_fork",
    }
    assert hosted == on_rollouts | {"clip_b", "clip_v"}


def test_no_metric_is_merged_in_a_way_that_its_name_suggests_by_accident():
    # verl takes the largest, least or sum of metrics whose names contain these words
    from pathlib import Path

    text = Path("docs/metrics.md").read_text()
    names = {word.strip("`") for word in text.split() if word.startswith("`entropy/")}
    assert len(names) > 15
    for name in names:
        assert MetricsAggregator()._get_aggregation_type(name) == "weighted_avg", name


def test_settings_that_keep_entropy_off_its_schedule_are_warned_of(monkeypatch):
    monkeypatch.setattr(PPOTrainerSync, "fit", lambda trainer, manager: None)
    trainer = object.__new__(EntropyControlSync)
    trainer.entropy_control = EntropyController("linear(initial, 0.5, 20)")
    trainer.tokenizer = MagicMock(vocab_size=100)
    trainer.total_training_steps = 4
    actor = {"ppo_mini_batch_size": 2, "ppo_epochs": 1, "optim": {"lr_scheduler_type": "cosine"}}
    trainer.config = OmegaConf.create(
        {
            "data": {"train_batch_size": 8},
            "actor_rollout_ref": {"actor": actor, "rollout": {"n": 4}},
        }
    )
    with pytest.warns(EntropyControlWarning) as seen:
        trainer.fit(None)
    texts = [str(warning.message) for warning in seen]
    assert "the run ends after 16:" in texts[0]
    assert "each optimizer step trains on 8 rollouts" in texts[1]
    assert "(actor.optim.lr_scheduler_type: cosine)" in texts[2]


# ---------------------------------------------------------------- the launcher


def test_arguments_are_put_into_hydras_grammar():
    given = [
        "trainer.n_gpus_per_node=8",
        "entrocraft.schedule=linear(0.6, 0.4, 800)",
        '+entrocraft.schedule="cosine(1, 0, 9)"',
        "++entrocraft.rule=sign",
        "entrocraft.options={quantile: 0.3}",
        "entrocraft.feedback.band=0.1",
    ]
    assert arguments_for_verl(given) == [
        "trainer.n_gpus_per_node=8",
        '++entrocraft.schedule="linear(0.6, 0.4, 800)"',
        '++entrocraft.schedule="cosine(1, 0, 9)"',
        "++entrocraft.rule=sign",
        "++entrocraft.options={quantile: 0.3}",
        "++entrocraft.feedback.band=0.1",
    ]


def launch_config(mode="sync", **changes):
    values = {
        "trainer": {"use_v1": True, "v1": {"trainer_mode": mode}},
        "ray_kwargs": {"ray_init": {"num_cpus": None}},
        "entrocraft": {"schedule": "0.4"},
    }
    return OmegaConf.create(values | changes)


@pytest.mark.parametrize("mode", ["sync", "entrocraft_sync"])
def test_the_launcher_chooses_the_controlled_trainer_everywhere(monkeypatch, mode):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "mine")
    made = launch_config(mode)
    OmegaConf.set_struct(made, True)
    _prepare(made, "mine,entrocraft.verl")
    assert made.trainer.v1.trainer_mode == "entrocraft_sync"
    forwarded = made.ray_kwargs.ray_init.runtime_env.env_vars
    assert forwarded.VERL_USE_EXTERNAL_MODULES == "mine,entrocraft.verl"
    assert os.environ["VERL_USE_EXTERNAL_MODULES"] == "mine,entrocraft.verl"


def test_the_launcher_refuses_before_a_cluster_is_started():
    with pytest.raises(SystemExit, match="entropy control knows verl's V1 trainers: sync, coloc"):
        _prepare(launch_config("asynchronous"), "")
    with pytest.raises(SystemExit, match="entrocraft: no entropy control is configured"):
        _prepare(launch_config(entrocraft=None), "")


# ---------------------------------------------------------------- the state


def checkpoints(folder, mode="auto", path=None):
    trainer = {
        "resume_mode": mode,
        "resume_from_path": path,
        "default_local_dir": str(folder),
    }
    return OmegaConf.create({"trainer": trainer})


def test_state_lies_beside_verls_checkpoint(tmp_path):
    automatic = checkpoint_folder(checkpoints(tmp_path), 7)
    assert automatic == tmp_path / "global_step_7"
    named = checkpoints(tmp_path / "new", "resume_path", str(tmp_path / "old" / "global_step_7"))
    assert checkpoint_folder(named, 7) == tmp_path / "old" / "global_step_7"
    # what is saved later in the same run goes to the new place
    assert checkpoint_folder(named, 8) == tmp_path / "new" / "global_step_8"
    write_checkpoint(automatic, {"a": 1}, 28.0)
    assert read_state(automatic) == ({"a": 1}, 28.0)
    assert [file.name for file in automatic.iterdir()] == ["entrocraft.json"]


def test_a_checkpoint_without_state_warns_and_a_broken_one_stops(tmp_path):
    with pytest.warns(EntropyControlWarning, match="was written without entropy control"):
        assert read_state(tmp_path) is None
    for text in ("{", "[]", '{"method": 1}'):
        (tmp_path / "entrocraft.json").write_text(text)
        with pytest.raises(ValueError, match="is not the state of an entropy method"):
            read_state(tmp_path)


# ---------------------------------------------------------------- the engine


class Output:
    def __init__(self, logits):
        self.logits = logits


def engine_call(packed, asked=True, temperature=0.7, **flags):
    """Call the engine's own method on hand-made logits; return its answer and what went in."""
    generator = torch.Generator().manual_seed(0)
    lengths, width, vocabulary = [5, 3, 7], 7, 11
    sequences = [torch.randint(vocabulary, (n,), generator=generator) for n in lengths]
    nested = torch.nested.as_nested_tensor(sequences, layout=torch.jagged)
    logits = torch.randn(3, width, vocabulary, generator=generator)
    labels = torch.cat([s.roll(-1) for s in sequences])
    flat = torch.cat([row[:n] for row, n in zip(logits, lengths, strict=True)])
    batch = TensorDict({"input_ids": nested}, batch_size=3)
    settings = {
        "use_remove_padding": packed,
        "calculate_entropy": True,
        FLAG: asked,
        **flags,
    }
    tensordict_utils.assign_non_tensor(batch, **settings)
    arguments = {"input_ids_rmpad_rolled": labels, "temperature_is_one": False}
    if packed:
        given = flat[None].clone()
        arguments |= {"temperature_rmpad": torch.full((15,), temperature), "pad_size": 0}
    else:
        given = logits.clone()
        arguments["temperature"] = torch.full((3,), temperature)
    engine = object.__new__(FSDPEngineWithLMHead)
    engine.use_ulysses_sp = False
    engine.ulysses_sequence_parallel_size = 1
    engine.engine_config = type(
        "Settings", (), {"entropy_checkpointing": False, "entropy_from_logits_with_chunking": False}
    )()
    from verl.utils import torch_functional

    engine.compute_entropy_from_logits = torch_functional.entropy_from_logits
    out = engine.prepare_model_outputs(Output(given), arguments, batch, None)
    return out, flat, labels, nested.offsets()


@pytest.mark.parametrize("packed", [True, False])
def test_the_engine_serves_sensitivities_beside_its_entropies(packed):
    out, logits, labels, offsets = engine_call(packed)
    expected = token_statistics(logits, labels, 0.7)
    assert torch.equal(out[SENSITIVITY].offsets(), offsets)
    assert torch.allclose(out[SENSITIVITY].values(), expected.sensitivity, atol=1e-6)
    assert torch.allclose(out["entropy"].values(), expected.entropy, atol=1e-5)
    assert torch.allclose(out["log_probs"].values(), expected.logprob, atol=1e-5)
    unasked, *_ = engine_call(packed, asked=False)
    assert SENSITIVITY not in unasked
    assert torch.equal(unasked["log_probs"].values(), out["log_probs"].values())


def test_fused_kernels_cannot_serve_them():
    with pytest.raises(RuntimeError, match="fused kernels never make; set"):
        engine_call(True, use_fused_kernels=True)


def test_the_engine_is_extended_once():
    from entrocraft.verl.engine import serve_sensitivity

    before = FSDPEngineWithLMHead.prepare_model_outputs
    serve_sensitivity(FSDPEngineWithLMHead)
    assert FSDPEngineWithLMHead.prepare_model_outputs is before
    assert "logits_processor_func" in inspect.signature(before).parameters


def test_state_is_json(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = method_of(config(schedule="0.4")).state_dict()
        write_checkpoint(tmp_path, state, 0.0)
    assert json.loads((tmp_path / "entrocraft.json").read_text())["method"] == state
