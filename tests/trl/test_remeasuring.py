"""The post-update change on real TRL trainings: what is reported is what a model would say."""

import math

import pytest
import torch

from entrocraft import EntropyController
from tests.trl.runs import REUSED, WITNESSES, Recording, make_trainer, rows, tiny_model

CHANGE = "entropy/post_update_change"


def score(batch, weights):
    """Log-probabilities and entropies (B, T) by the transformers model itself."""
    model = tiny_model(ends=True)
    model.load_state_dict(weights)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].shape[1]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=mask).logits
    log_p = (logits[:, -length - 1 : -1].float() / 0.9).log_softmax(-1).double()
    chosen = log_p.gather(-1, batch["completion_ids"][..., None])[..., 0]
    return chosen, -(log_p.exp() * log_p).sum(-1)


def by_hand(batch, after, rollouts=range(16)):
    """Change of the mean entropy: token by token, rollout by rollout."""
    old, new = score(batch, batch["weights_before"]), score(batch, after)
    total = [0.0] * 4
    for row in rollouts:
        weight = 1.0
        for column in range(int(batch["completion_mask"][row].sum())):
            total[0] += 1
            total[1] += float(old[1][row, column])
            total[2] += weight
            total[3] += weight * float(new[1][row, column])
            weight *= math.exp(float(new[0][row, column] - old[0][row, column]))
    return total[3] / total[2] - total[1] / total[0]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("reuse", [{}, REUSED], ids=["one step", "four steps"])
def test_the_reported_change_is_the_change(kind, reuse):
    steps = 4 if reuse else 1
    trainer = make_trainer(
        kind,
        WITNESSES[kind],
        model=tiny_model(ends=True),
        entropy_control=EntropyController("constant(initial)", remeasure=1),
        max_steps=2 * steps + 1,
        temperature=0.9,
        learning_rate=2e-5,  # no ratio is cut
        **reuse,
    )
    trainer.train()
    logged = [row.get(CHANGE) for row in rows(trainer)]
    first, second, third = trainer.batches
    expected = [by_hand(first, second["weights_before"]), by_hand(second, third["weights_before"])]
    assert abs(expected[0]) > 1e-4, "something has to move"
    # reported at the end of the batch's last step
    assert [logged[steps - 1], logged[2 * steps - 1]] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert [index for index, change in enumerate(logged) if change is not None] == (
        [steps - 1, 2 * steps - 1] if reuse else [0, 1, 2]
    )
    assert all(row[f"{CHANGE}_stderr"] > 0 for row in rows(trainer) if CHANGE in row)


def test_prompts_that_were_not_trained_on_are_asked_alone():
    class Picky(Recording):
        """Trains on the first two prompts of eight."""

        def decide(self, batch, step=None):
            decision = super().decide(batch, step)
            decision.advantages[:8] = 1.0
            decision.advantages[8:] = 0.0
            return decision

        def post_update(self, change, stderr, trained):
            self.answered.append((change, trained))
            return super().post_update(change, stderr, trained)

    control = Picky("constant(initial)", remeasure=1, extra_pass=True)
    trainer = make_trainer(
        "grpo",
        WITNESSES["grpo"],
        model=tiny_model(ends=True),
        entropy_control=control,
        max_steps=2,
        temperature=0.9,
        learning_rate=2e-5,
        per_device_train_batch_size=32,
    )
    trainer.train()
    first, second = trainer.batches
    change, trained = control.answered[1]
    assert not trained
    expected = by_hand(first, second["weights_before"], range(8, 32))
    assert change == pytest.approx(expected, rel=1e-3)
    everything = by_hand(first, second["weights_before"], range(32))
    assert abs(everything - expected) > 1e-2 * abs(expected)


def test_the_method_knows_before_the_checkpoint_and_before_the_next_decision():
    class Diary(Recording):
        def post_update(self, change, stderr, trained):
            self.asked.append("post-update")
            return super().post_update(change, stderr, trained)

    control = Diary("constant(initial)")
    make_trainer(entropy_control=control, max_steps=3).train()
    kinds = ["post-update" if entry == "post-update" else "decided" for entry in control.asked]
    assert kinds == ["decided", "post-update"] * 3


@pytest.mark.parametrize(
    "control",
    [
        EntropyController("constant(initial)", remeasure=0),
        EntropyController("constant(initial)", rule="sign"),
        EntropyController(None, rule=None),
    ],
    ids=["switched off", "sign", "observes"],
)
def test_who_does_not_ask_pays_nothing(control):
    trainer = make_trainer(entropy_control=control, max_steps=2)
    trainer.train()
    assert not any(CHANGE in row for row in rows(trainer))


@pytest.mark.parametrize("extra_pass", [False, True])
def test_a_share_of_the_prompts_is_scored(extra_pass):
    rescored = []

    class Watched(WITNESSES["grpo"]):
        def _get_per_token_logps_and_entropies(self, model, ids, *args, **kwargs):
            if not torch.is_grad_enabled():
                rescored.append(ids)
            return super()._get_per_token_logps_and_entropies(model, ids, *args, **kwargs)

    control = Recording("constant(initial)", remeasure=0.5, seed=1, extra_pass=extra_pass)
    trainer = make_trainer(
        "grpo",
        Watched,
        model=tiny_model(ends=True),
        entropy_control=control,
        max_steps=2,
        temperature=0.9,
        learning_rate=2e-5,
    )
    trainer.train()
    first, second = trainer.batches
    # four passes each: rollouts of about one length together
    sizes = [4, 4, 4, 4, 2, 2, 2, 2] if extra_pass else [2, 2, 2, 2]
    assert [len(ids) for ids in rescored] == 2 * sizes
    after = [rescored[len(sizes) - 4 : len(sizes)], rescored[-4:]]
    ids = torch.cat([first["prompt_ids"], first["completion_ids"]], 1)
    seen = [row for part in after[0] for row in part]
    chosen = [
        row
        for row in range(16)
        if any(torch.equal(ids[row, : len(found)], found) for found in seen)
    ]
    prompts = {row // 4 for row in chosen}
    assert len(prompts) == 2
    expected = by_hand(first, second["weights_before"], chosen)
    assert rows(trainer)[0][CHANGE] == pytest.approx(expected, rel=1e-3)
    # other prompts at another step
    prompts = [
        {tuple(row[: first["prompt_ids"].shape[1]].tolist()) for part in found for row in part}
        for found in after
    ]
    assert prompts[0] != prompts[1]


def test_several_batches_in_one_step_are_not_measured():
    trainer = make_trainer(
        entropy_control="constant(initial)",
        max_steps=2,
        steps_per_generation=1,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert not any(CHANGE in row for row in rows(trainer))
    assert trainer.last_decision is not None


@pytest.mark.parametrize("accumulated", [1, 2], ids=["two steps", "one step"])
@pytest.mark.parametrize("where", ["adapter", "attention"])
def test_dropout_is_no_change(where, accumulated):
    """With a learning rate of 0 nothing moves, whatever TRL's own passes drop out."""
    peft = pytest.importorskip("peft")
    settings = {}
    if where == "adapter":
        settings["peft_config"] = peft.LoraConfig(
            target_modules="all-linear", r=4, lora_dropout=0.2, init_lora_weights=False
        )
    model = tiny_model(ends=True, attention_dropout=0.2 if where == "attention" else 0.0)
    trainer = make_trainer(
        model=model,
        entropy_control="constant(initial)",
        learning_rate=0.0,
        per_device_train_batch_size=8,
        steps_per_generation=2,
        gradient_accumulation_steps=accumulated,
        **settings,
    )
    trainer.train()
    changes = [row[CHANGE] for row in rows(trainer) if CHANGE in row]
    assert changes == pytest.approx([0.0] * 2 * accumulated, abs=1e-6)
