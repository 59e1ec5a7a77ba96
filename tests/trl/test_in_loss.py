"""Decisions inside TRL's loss: one pass over each micro-batch, and TRL's own run from there."""

import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
import torch
import trl

from entrocraft import EntropyController, FeedbackSettings, SelectionSettings
from entrocraft.trl import EntropyControlMixin
from entrocraft.trl.adapter import GenerationBatch
from tests.trl.runs import (
    ALIGNED,
    REUSED,
    TOKENIZER,
    Recording,
    Witness,
    make_trainer,
    rows,
    tiny_model,
)
from tests.trl.test_decisions import rollouts

CHUNKS = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 4,
}
SEVERAL = CHUNKS | {"steps_per_generation": 2, "gradient_accumulation_steps": 6, "max_steps": 3}
"""Three generation batches of 8 rollouts make one optimizer step."""

SHAPES = {"aligned": ALIGNED, "chunks": CHUNKS, "several batches a step": SEVERAL}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)

pytestmark = pytest.mark.filterwarnings("ignore::entrocraft.EntropyControlWarning")


def few_levels(prompts, completions, **columns):
    """Rewards of 0, 0.5 and 1: some rollouts are the mean of their group, some groups all alike."""
    pairs = zip(prompts, completions, strict=True)
    return [1.0 if len(p) == 5 else sum(map(ord, text)) % 3 / 2 for p, text in pairs]


class Inside(trl.GRPOTrainer):
    """TRL's trainer that keeps what its loss has read."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.read.append({name: value for name, value in inputs.items() if name in READ})
        return loss


class Controlled(Witness, Inside):
    """Control around it."""

    def __init__(self, *args, **kwargs):
        self.read = []
        super().__init__(*args, **kwargs)


READ = ("prompt_ids", "completion_ids", "completion_mask", "advantages")


class Replay(trl.GRPOTrainer):
    """Plain TRL that is handed the advantages of its generation batches."""

    advantages = ()

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = self.advantages.pop(0).to(output["advantages"])
        return output


def controlled(control, cls=Controlled, **settings):
    trainer = make_trainer("grpo", cls, entropy_control=control, **settings)
    assert trainer._in_loss is not None
    trainer.train()
    return trainer


def steered(schedule="linear(initial, 0.5*initial, 4)", **settings):
    return Recording(schedule, **({"remeasure": 0, "seed": 3} | settings))


# ---------------------------------------------------------------- passes


@shapes
@pytest.mark.parametrize("observes", [False, True])
def test_the_losss_own_pass_is_the_only_one(shape, observes):
    control = EntropyController(None, rule=None) if observes else steered()
    model, passes = tiny_model(), []
    generate = model.generate

    def hear(module, inputs, kwargs, output):
        ids = inputs[0] if inputs else kwargs["input_ids"]
        passes.append((len(ids), torch.is_grad_enabled()))

    def without_ear(*args, **kwargs):
        handle.remove()
        try:
            return generate(*args, **kwargs)
        finally:
            listen()

    def listen():
        nonlocal handle
        handle = model.base_model.register_forward_hook(hear, with_kwargs=True)

    handle = None
    listen()
    model.generate = without_ear
    trainer = controlled(control, model=model, **shape)
    size = trainer.args.per_device_train_batch_size
    micro_batches = trainer.state.global_step * trainer.args.gradient_accumulation_steps
    assert passes == [(size, True)] * micro_batches
    assert "entropy/measured" in rows(trainer)[0]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("rloo", ALIGNED), ("grpo", REUSED), ("grpo", {"num_iterations": 2})],
)
def test_a_batch_that_trl_scores_anyway_is_decided_on_before_its_loss(kind, settings):
    control = steered()
    trainer = make_trainer(kind, entropy_control=control, **settings)
    assert trainer._in_loss is None
    trainer.train()
    assert control.state.last is None
    assert any(0 in answer.weights[:4] or 0 in answer.weights for answer in control.answered[:1])


# ---------------------------------------------------------------- what the loss reads

CONTROLS = {
    "tilt": {},
    "logit": {"effect": "logit"},
    "joining": {"selection": SelectionSettings(constant_reward_groups=True)},
    "remeasured": {"remeasure": 1},
}


def per_batch(trainer):
    """What TRL's loss read of each generation batch."""
    size = trainer.args.steps_per_generation
    return [trainer.read[start : start + size] for start in range(0, len(trainer.read), size)]


@shapes
@pytest.mark.parametrize("name", CONTROLS)
def test_trls_loss_reads_the_decisions_advantages(name, shape):
    control = steered(**CONTROLS[name])
    trainer = controlled(control, reward_funcs=few_levels, **shape)
    batches = list(zip(trainer.batches, control.answered, per_batch(trainer), strict=True))
    assert len(batches) > 2
    rejected = shuffled = joined = 0
    for batch, decision, read in batches:
        seen = Counter()
        for micro in read:
            seen += rollouts(micro, micro["advantages"])
        assert seen == rollouts(batch, decision.advantages)
        assert torch.equal(batch["decided"], decision.advantages.float())
        used = decision.weights[batch["advantages"] != 0]
        rejected += int((used == 0).sum())
        joined += int(((batch["advantages"] == 0) & (decision.advantages != 0)).sum())
        order = torch.cat([micro["completion_ids"] for micro in read])
        shuffled += not torch.equal(order, batch["completion_ids"][:, : order.shape[1]])
    assert rejected > 0
    assert (joined > 0) == (name == "joining")
    assert shuffled > 0, "TRL shuffles rows"
    assert trainer.last_decision is control.answered[-1]
    assert bool((control.answered[0].weights[batches[0][0]["advantages"] != 0] == 1).all())


@shapes
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_it_is_the_run_that_plain_trl_makes_with_these_advantages(loss_type, dropout, shape):
    """Bit for bit: losses, gradients, weights. A rejected rollout is one with advantage 0."""
    settings = {"loss_type": loss_type, **shape}
    control = steered("linear(initial, 0.5*initial, 8)")
    trainer = controlled(control, model=tiny_model(attention_dropout=dropout), **settings)
    assert sum(int((answer.weights == 0).sum()) for answer in control.answered) > 3
    plain = make_trainer("grpo", Replay, model=tiny_model(attention_dropout=dropout), **settings)
    plain.advantages = [answer.advantages for answer in control.answered]
    plain.train()
    assert plain.advantages == []
    own = [
        {key: value for key, value in row.items() if not key.startswith("entropy/")}
        for row in rows(trainer)
    ]
    assert own == rows(plain)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name


@shapes
def test_the_column_kept(shape, tmp_path):
    control = steered()
    trainer = controlled(control, log_completions=True, output_dir=str(tmp_path), **shape)
    # TRL's own columns hold the latest generation batch
    assert len(trainer._logs["extra"]["kept"]) == len(trainer._logs["completion"])
    kept = list(trainer._logs["extra"]["kept"])
    assert kept == (control.answered[-1].weights != 0).tolist()
    assert not all(kept)


def test_a_trainer_that_spreads_and_scales_advantages_keeps_what_it_made():
    given_to_control = []

    class Mine(Controlled):
        def _compute_loss(self, model, inputs):
            ramp = torch.linspace(1, 2, inputs["completion_ids"].shape[1])
            spread = inputs["advantages"][:, None] * ramp
            given_to_control.append(spread)
            return super()._compute_loss(model, inputs | {"advantages": spread})

    control = steered()
    trainer = controlled(control, Mine, **CHUNKS)
    rejected = 0
    for given, read in zip(given_to_control, trainer.read, strict=True):
        kept = (read["advantages"] != 0).any(1)
        assert torch.equal(read["advantages"], given * kept[:, None])
        rejected += int(((given != 0).any(1) & ~kept).sum())
    expected = sum(
        int(((batch["advantages"] != 0) & (answer.weights == 0)).sum())
        for batch, answer in zip(trainer.batches, control.answered, strict=True)
    )
    assert rejected == expected > 0


# ---------------------------------------------------------------- batches that are not as usual


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("step", [0, 2])
def test_a_micro_batch_that_cannot_be_scored_stops_the_run_before_the_step(step, place):
    model, calls = tiny_model(), []

    def spoil(module, inputs, output):
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == 4 * step + place + 1:
                output.last_hidden_state[1] = math.nan

    model.base_model.register_forward_hook(spoil)
    control = steered()
    trainer = make_trainer("grpo", Controlled, model=model, entropy_control=control, **CHUNKS)
    with pytest.raises(ValueError, match=r"logprobs\[1, 0\] is nan inside the mask"):
        trainer.train()
    assert len(calls) == 4 * step + 4
    assert trainer.state.global_step == step
    assert control.state.decisions == step
    before = trainer.batches[-1]["weights_before"]
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_micro_batches_without_a_token(loss_type):
    """Truncated completions are masked; whole micro-batches are, in the first batch too."""
    control = steered(selection=SelectionSettings(constant_reward_groups=True))
    trainer = controlled(
        control,
        model=tiny_model(ends=True),
        mask_truncated_completions=True,
        loss_type=loss_type,
        per_device_train_batch_size=1,
        steps_per_generation=16,
        gradient_accumulation_steps=16,
        reward_funcs=few_levels,
    )
    empty = [not bool(micro["completion_mask"].any()) for micro in trainer.read]
    assert any(empty[:16])
    assert not all(empty[:16])
    for batch, decision in zip(trainer.batches, control.answered, strict=True):
        silent = batch["completion_mask"].sum(1) == 0
        assert bool((decision.weights[silent] == 1).all())
        assert torch.equal(batch["decided"], decision.advantages.float())


def test_batches_without_any_token_are_left_to_trl():
    control = steered()
    trainer = controlled(
        control,
        mask_truncated_completions=True,
        generation_kwargs={"suppress_tokens": [TOKENIZER.eos_token_id]},
        log_completions=True,
        **CHUNKS,
    )
    assert control.answered == []
    assert trainer.last_decision is None
    assert [row["grad_norm"] for row in rows(trainer)] == [0] * 4
    assert list(trainer._logs["extra"]["kept"]) == [True] * 16


class OwnLoss(trl.GRPOTrainer):
    """A loss that does not score tokens as TRL does."""

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        return model(input_ids=ids).logits.square().mean()


def test_a_loss_that_never_scores_by_trls_method_is_told_of_the_remedy():
    class Mine(EntropyControlMixin, OwnLoss):
        pass

    trainer = make_trainer("grpo", Mine, entropy_control=steered())
    with pytest.raises(RuntimeError, match=r"give EntropyController\(..., extra_pass=True\)"):
        trainer.train()
    assert trainer.state.global_step == 0
    control = steered(extra_pass=True)
    make_trainer("grpo", Mine, entropy_control=control).train()
    assert len(control.answered) == 4


def test_a_loss_that_raises_leaves_no_trace():
    """Whoever trains again after it starts as if nothing had been."""

    class Failing(trl.GRPOTrainer):
        fails = True

        def _compute_loss(self, model, inputs):
            if self.fails:
                raise KeyError("before the pass")
            return super()._compute_loss(model, inputs)

    class Mine(EntropyControlMixin, Failing):
        pass

    control = steered()
    trainer = make_trainer("grpo", Mine, entropy_control=control)
    with pytest.raises(KeyError, match="before the pass"):
        trainer.train()
    trainer.fails = False
    trainer.train()
    assert len(control.answered) == 4


@shapes
def test_resuming_continues_bit_for_bit(shape, tmp_path):
    def start(path, resume=None):
        control = Recording(
            "linear(initial, 4.5, 4)",
            feedback=FeedbackSettings(learning_rate=True),
            selection=SelectionSettings(constant_reward_groups=True),
            seed=5,
        )
        trainer = make_trainer(
            entropy_control=control,
            output_dir=str(path),
            reward_funcs=few_levels,
            save_strategy="steps",
            save_steps=2,
            **(shape | {"max_steps": 4}),
        )
        trainer.train(resume_from_checkpoint=resume and str(path / resume))
        return trainer, control

    uninterrupted, whole = start(tmp_path)
    resumed, half = start(tmp_path, "checkpoint-2")
    assert rows(resumed) == rows(uninterrupted)
    assert half.state_dict() == whole.state_dict()
    assert whole.state.last is not None
    assert whole.state.learning_rate_factor < 1
    for name, tensor in uninterrupted.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


# ---------------------------------------------------------------- groups on several processes


def test_a_group_on_two_processes_has_its_whole_rewards():
    """Large rewards: taken alone, this process's half of the group looks like rounding noise."""
    trainer = SimpleNamespace(
        entropy_control=steered(),
        accelerator=SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu")),
        args=SimpleNamespace(steps_per_generation=1, gradient_accumulation_steps=1),
        num_iterations=1,
        num_generations=4,
        loss_type="dapo",
        optimizer=None,
        state=SimpleNamespace(global_step=0),
        _metrics={"train": defaultdict(list)},
    )
    rewards = torch.tensor([1000.0, 1000.0, 1001.0, 1001.0])
    output = {"advantages": torch.tensor([-0.87, -0.87]), "completion_mask": torch.ones(2, 3)}
    batch = GenerationBatch(trainer, output, None, None, rewards)
    assert torch.equal(batch.exact_advantages(), output["advantages"])
    alike = GenerationBatch(trainer, output, None, None, torch.full((4,), 1000.0))
    assert not alike.exact_advantages().any()
