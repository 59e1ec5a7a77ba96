"""Baselines inside TRL: options, token advantages in its loss, a bonus, more rollouts."""

import json
import warnings
from collections import Counter

import pytest
import torch
import trl

from entrocraft.methods import METHODS, get_method, method_class
from entrocraft.methods.presets import Preset
from entrocraft.methods.token_weights import TokenMethod
from tests.trl.runs import (
    PLAIN,
    PROMPTS,
    REUSED,
    TOKENIZER,
    WitnessGRPO,
    digits,
    generation_batch,
    make_trainer,
    rows,
    tiny_model,
)

HAS_BONUS = hasattr(trl.GRPOConfig(use_cpu=True, bf16=False), "entropy_coef")
BONUS = {"entropy_bonus", "adaptive_bonus", "aent"}
AVAILABLE = [name for name in METHODS if HAS_BONUS or name not in BONUS]
OPTIONS = [name for name in AVAILABLE if issubclass(method_class(name), Preset)]
IN_LOSS = ("update", "batch")


def without_entropy(row):
    return {key: value for key, value in row.items() if not key.startswith("entropy/")}


# ---------------------------------------------------------------- TRL's own options


@pytest.mark.parametrize("name", OPTIONS)
def test_options_make_the_run_that_trl_makes_with_them(name):
    # one whose options change from batch to batch is held still
    own = {"most": 0.0} if name == "mai_clip" else {}
    method = get_method(name, 4.0, **own)
    by_hand = dict(method.trainer_options)
    if name == "adaptive_bonus":
        by_hand["entropy_target"] = 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        hosted = make_trainer(entropy_control=method, **REUSED)
        hosted.train()
    reference = make_trainer(cls=PLAIN["grpo"], **by_hand, **REUSED)
    reference.train()
    assert [without_entropy(row) for row in rows(hosted)] == rows(reference)
    for key, tensor in reference.model.state_dict().items():
        assert torch.equal(tensor, hosted.model.state_dict()[key]), key
    plain = make_trainer(cls=PLAIN["grpo"], **REUSED)
    plain.train()
    differs = [row["loss"] for row in rows(plain)] != [row["loss"] for row in rows(hosted)]
    # at this learning rate no ratio of four updates comes near these bounds
    assert differs or name in ("clip_higher", "clip_low")


@pytest.mark.skipif(not HAS_BONUS, reason="this TRL has no entropy bonus")
def test_the_adaptive_bonus_follows_a_schedule():
    options = {"schedule": "linear(2.5, 3.7, 4)", "delta": 0.01}
    trainer = make_trainer(entropy_control=get_method("adaptive_bonus", **options), max_steps=6)
    trainer.train()
    logged = rows(trainer)
    coefficient, seen = 0.0, []
    for row, target in zip(logged, [2.5, 2.8, 3.1, 3.4, 3.7, 3.7], strict=True):
        assert row["entropy/target"] == pytest.approx(target)
        coefficient = max(0.0, coefficient + (0.01 if row["entropy"] <= target else -0.01))
        seen.append(coefficient)
        assert row["entropy_coef"] == pytest.approx(coefficient)
    assert 0 == min(seen) < max(seen)


def test_the_users_config_is_left_as_it_was():
    config = trl.GRPOConfig(
        output_dir="unused", use_cpu=True, bf16=False, report_to="none", num_iterations=2
    )
    from entrocraft.trl import GRPOTrainer

    trainer = GRPOTrainer(
        model=tiny_model(),
        reward_funcs=digits,
        args=config,
        train_dataset=PROMPTS,
        processing_class=TOKENIZER,
        entropy_control="gspo",
    )
    assert trainer.args.importance_sampling_level == trainer.importance_sampling_level == "sequence"
    assert config.importance_sampling_level == "token"
    positional = GRPOTrainer(
        tiny_model(),
        digits,
        config,
        PROMPTS,
        processing_class=TOKENIZER,
        entropy_control="clip_higher",
    )
    assert positional.epsilon_high == 0.28


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy_control": "tilt"}, "'tilt' is a rule of the controller, which needs a schedule"),
        ({"entropy_control": "clip_cof"}, "neither a schedule such as .* nor a method; methods"),
        ({"entropy_control": "linear(0.5)"}, "linear"),
        ({"entropy_control": "clip_higher", "epsilon_high": 0.3}, "sets epsilon_high=0.28, and"),
        ({"entropy_control": "gspo", "kind": "rloo"}, "RLOOConfig of TRL .* does not have"),
        ({"entropy_control": "erc", "kind": "rloo"}, "one advantage for a sequence"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings)


def test_a_method_with_options_needs_a_config():
    from entrocraft.trl import GRPOTrainer

    with pytest.raises(ValueError, match=r"give it a config, e\.g\. args=GRPOConfig"):
        GRPOTrainer(tiny_model(), digits, entropy_control="clip_higher")


# ---------------------------------------------------------------- token by token


class Spy(TokenMethod):
    """Keeps the token batches that it is shown, and halves their advantages."""

    name = "spy"

    def __init__(self, scope):
        super().__init__()
        self.token_scope, self.seen = scope, []

    def reweigh(self, tokens):
        self.seen.append(tokens)
        return 0.5 * tokens.token_advantages


def present(model, batch):
    """Log-probabilities and entropies of a batch's completions, from whole logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    keep = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -keep - 1 : -1]
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(-1, batch["completion_ids"][..., None])[..., 0]
    return chosen, -(log_p.exp() * log_p).sum(-1), logits


def per_row(batch, values):
    texts = (
        tuple(p + c)
        for p, c in zip(batch["prompt_ids"].tolist(), batch["completion_ids"].tolist(), strict=True)
    )
    return Counter(
        (text, tuple(round(v, 4) for v in row))
        for text, row in zip(texts, values.tolist(), strict=True)
    )


def test_a_method_sees_present_and_old_policy_of_every_micro_batch():
    spy = Spy("update")
    model = tiny_model(ends=True)
    trainer = make_trainer(cls=WitnessGRPO, model=model, entropy_control=spy, **REUSED)
    trainer.train()
    # 16 rollouts in micro-batches of 4, used twice
    assert len(spy.seen) == len(trainer.micro_batches) == 8
    [batch] = trainer.batches
    old = tiny_model(ends=True)
    old.load_state_dict(batch["weights_before"])
    with torch.no_grad():
        logprobs, entropies, _ = present(old, batch)
    mask = batch["completion_mask"].bool()
    for half in (spy.seen[:4], spy.seen[4:]):
        start = 4 * spy.seen.index(half[0])
        micros = trainer.micro_batches[start // 4 : start // 4 + 4]
        for field, expected in (("old_entropies", entropies), ("old_logprobs", logprobs)):
            seen = Counter()
            for micro, tokens in zip(micros, half, strict=True):
                shown = torch.where(tokens.mask, getattr(tokens, field), 0.0)
                seen += per_row(micro, shown.float())
            assert seen == per_row(batch, torch.where(mask, expected, 0.0)), field
    for tokens, micro in zip(spy.seen, trainer.micro_batches, strict=True):
        assert torch.equal(tokens.advantages, micro["advantages"])
        assert tokens.share == 0.5
    assert [tokens.step for tokens in spy.seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    moved = [(t.ratio - 1)[t.mask].abs().max().item() for t in spy.seen]
    assert max(moved[:2]) < 1e-5
    assert min(moved[2:]) > 1e-5


@pytest.mark.parametrize("scope", IN_LOSS)
def test_the_loss_reads_the_token_advantages(scope):
    def gradient(control):
        trainer = make_trainer(model=tiny_model(ends=True), entropy_control=control)
        torch.manual_seed(5)
        batch = generation_batch(trainer)
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    from entrocraft import EntropyController

    whole = gradient(EntropyController(None, rule=None))
    assert whole.norm() > 0
    assert torch.allclose(gradient(Spy(scope)), 0.5 * whole, atol=1e-9)


def test_the_batch_is_shown_once_with_its_sensitivities():
    spy = Spy("batch")
    type(spy).effect = property(lambda self: "logit")
    try:
        trainer = make_trainer(entropy_control=spy, **REUSED)
        trainer.train()
    finally:
        del type(spy).effect
    [tokens] = spy.seen
    assert tokens.sensitivity.shape == tokens.mask.shape == (16, 8)
    assert torch.equal(tokens.ratio, torch.ones_like(tokens.ratio))
    assert tokens.sensitivity.abs().max() > 0


# ---------------------------------------------------------------- a bonus of its own


@pytest.mark.skipif(not HAS_BONUS, reason="this TRL has no entropy bonus")
def test_aent_adds_its_clamped_entropy_to_the_loss():
    control = get_method("aent", bonus=0.01, clamp=0.5, smallest=0.01)
    trainer = make_trainer(model=tiny_model(ends=True), entropy_control=control)
    batch = generation_batch(trainer)
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    found = [p.grad.clone() for p in trainer.model.parameters()]

    _, _, logits = present(trainer.model, batch)
    mask = batch["completion_mask"].bool()
    logprobs = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    ratio = (logprobs - logprobs.detach()).exp()
    policy = -(ratio * batch["advantages"][:, None])[mask].sum() / mask.sum()
    ordered = logits.sort(dim=-1).values[..., int(0.5 * logits.shape[-1]) :]
    p = ordered.softmax(-1)
    bonus = -(p * p.log()).sum(-1)[mask].mean()
    trainer.model.zero_grad()
    (policy - 0.01 * bonus).backward()
    for expected, grad in zip(trainer.model.parameters(), found, strict=True):
        assert torch.allclose(grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not HAS_BONUS, reason="this TRL has no entropy bonus")
def test_aent_adapts_after_every_optimizer_step():
    control = get_method("aent", 9e-1, bonus=0.005, rate=0.001)
    trainer = make_trainer(entropy_control=control, max_steps=8, **REUSED)
    trainer.train()
    coefficient, seen = 0.005, []
    for step in range(8):
        if step % 4 == 0:
            error = rows(trainer)[step]["entropy/measured"] - 0.9
        coefficient = max(1e-5, coefficient - 0.001 * error)
        seen.append(coefficient)
    assert [row["entropy_coef"] for row in rows(trainer)[1:]] == pytest.approx(seen[:-1])
    assert trainer.entropy_coef == pytest.approx(seen[-1])


# ---------------------------------------------------------------- more rollouts


def test_aepo_replaces_the_first_rows_by_successes_of_another_temperature():
    control = get_method("aepo", 4.5, hot=3.0, share=0.5, rows=5, least_advantage=0.0)
    temperatures = []

    class Watched(WitnessGRPO):
        def _generate_and_score_completions(self, inputs):
            return super()._generate_and_score_completions(inputs)

        def _generate(self, prompts, *args, **kwargs):
            temperatures.append((len(prompts), self.generation_config.temperature))
            return super()._generate(prompts, *args, **kwargs)

    trainer = make_trainer(
        cls=Watched, model=tiny_model(ends=True), entropy_control=control, num_iterations=2
    )
    metrics_before = {k: list(v) for k, v in trainer._metrics["train"].items()}
    output = generation_batch(trainer)
    assert temperatures == [(16, 1.0), (8, 3.0)]
    assert trainer.generation_config.temperature == 1.0
    [before] = trainer.batches
    assert output["advantages"].shape == (16,)
    replaced = output["advantages"] != before["advantages"]
    count = int((output["advantages"] == 1.0).sum())
    assert 0 < count <= 5
    assert (output["advantages"][:count] == 1.0).all()
    assert not replaced[count:].any()
    # old log-probabilities are those of the rows, whatever temperature made them
    with torch.no_grad():
        logprobs, _, _ = present(trainer.model, output)
    mask = output["completion_mask"].bool()
    assert torch.allclose(output["old_per_token_logps"][mask], logprobs[mask], atol=1e-4)
    assert output["num_items_in_batch"] == mask.sum()
    # the log speaks of the batch alone
    assert not metrics_before
    assert len(trainer._metrics["train"]["reward"]) == 1
    assert len(trainer._logs["completion"]) == 16
    assert trainer._metrics["train"]["entropy/extra_rollouts"] == [count]


def test_aepo_takes_half_above_its_target():
    control = get_method("aepo", 0.01, share=1.0, rows=4, least_advantage=-9.0)
    trainer = make_trainer(entropy_control=control)
    output = generation_batch(trainer)
    assert int((output["advantages"] == 1.0).sum()) == 2


# ---------------------------------------------------------------- all of them


@pytest.mark.slow
@pytest.mark.parametrize("name", AVAILABLE)
def test_every_method_trains_and_resumes_exactly(name, tmp_path):
    def run(steps, resume=False):
        trainer = make_trainer(
            entropy_control=get_method(name, "linear(initial, 0.5*initial, 8)"),
            model=tiny_model(ends=True),
            reward_funcs=lambda completions, **columns: [
                float(sum(map(ord, text)) % 3 == 0) for text in completions
            ],
            output_dir=str(tmp_path / str(steps)) if not resume else str(tmp_path / "2"),
            max_steps=steps,
            save_strategy="steps",
            save_steps=2,
            steps_per_generation=2,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(4)
    run(2)
    resumed = run(4, resume=True)
    assert json.loads(json.dumps(resumed.entropy_control.state_dict())) == (
        json.loads(json.dumps(whole.entropy_control.state_dict()))
    )
    for key, tensor in whole.model.state_dict().items():
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    assert "entropy/target" in rows(whole)[0]


@pytest.mark.parametrize(
    "name",
    [n for n in AVAILABLE if issubclass(method_class(n), TokenMethod) or n == "aent"],
)
def test_batches_without_any_token_change_no_state(name):
    method = get_method(name, *([2.5] if method_class(name).follows else []))
    trainer = make_trainer(
        entropy_control=method,
        mask_truncated_completions=True,
        generation_kwargs={"suppress_tokens": [TOKENIZER.eos_token_id]},
        max_steps=2,
        **REUSED,
    )
    before = method.state_dict()
    trainer.train()
    assert [row["grad_norm"] for row in rows(trainer)] == [0, 0]
    assert method.state_dict() == before
