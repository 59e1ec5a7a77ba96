"""What is read of the policy before the update: right numbers, at the cost of no more than a pass.

Every number is compared with one computed here from the full logits of the model's own forward.
"""

import pytest
import torch
from peft import LoraConfig
from transformers import CohereConfig, Gemma2Config, GraniteConfig

from entrocraft import EntropyController, effects
from entrocraft.trl import EntropyControlMixin
from tests.trl.runs import (
    ALIGNED,
    PLAIN,
    REUSED,
    TOKENIZER,
    VOCABULARY,
    WITNESSES,
    generation_batch,
    make_trainer,
    rows,
    saved,
    tiny_model,
    tiny_shape,
)

STEPS_OF_FOUR = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 4,
}
CASES = [("grpo", ALIGNED), ("grpo", STEPS_OF_FOUR), ("grpo", REUSED), ("rloo", ALIGNED)]
NAMES = ["aligned", "aligned-chunks", "reused", "rloo"]


def full_logits(model, batch):
    """Logits at the completion's positions from the model's own forward: (B, T, V) float64."""
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(
            input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        ).logits
    model.train(training)
    return logits[:, -batch["completion_ids"].size(1) - 1 : -1].double()


def by_definition(logits, tokens, temperature):
    """Log-prob, entropy and sensitivity (each (B, T)) by the letter of their definitions.

    Sensitivity: change of a position's entropy along the policy gradient of its sampled token,
    which in logits is one-hot minus probabilities. The entropy's gradient comes from autograd.
    """
    z = (logits / temperature).requires_grad_()
    log_p = z.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    (slope,) = torch.autograd.grad(entropy.sum(), z)
    direction = torch.nn.functional.one_hot(tokens, z.size(-1)) - log_p.exp()
    logprob = log_p.gather(-1, tokens[..., None])[..., 0]
    return [x.detach() for x in (logprob, entropy, (slope * direction).sum(-1))]


def at_batch(trainer, batch):
    """Load the weights that the model had when it was asked about this batch."""
    trainer.model.load_state_dict(batch["weights_before"])
    return trainer.model


def check_signals(trainer, temperature=1.0, tolerance=1e-5):
    """Every signal of every batch against its definition; returns the first batch's."""
    assert trainer.batches
    for batch in trainer.batches:
        logits = full_logits(at_batch(trainer, batch), batch)
        expected = by_definition(logits, batch["completion_ids"], temperature)
        mask = batch["completion_mask"].bool()
        signals = batch["signals"]
        found = (signals.logprobs, signals.entropies, signals.sensitivity)
        for name, mine, reference in zip(("logp", "H", "S"), found, expected, strict=True):
            assert mine.shape == mask.shape
            error = (mine - reference)[mask].abs().max()
            assert error < tolerance, (name, float(error), float(reference[mask].abs().max()))
        assert float(expected[2][mask].abs().max()) > 0.01  # no test if all were 0
    return trainer.batches[0]


def witnessed(kind="grpo", model=None, control=None, **settings):
    control = control or EntropyController(2.5, effect="logit")
    trainer = make_trainer(kind, WITNESSES[kind], model=model, entropy_control=control, **settings)
    trainer.train()
    return trainer


def outcome(**settings):
    try:
        return witnessed(**settings)
    except (RuntimeError, ValueError) as error:
        return error


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("kind", "settings"), CASES, ids=NAMES)
def test_signals_equal_their_definitions(kind, settings, temperature):
    trainer = witnessed(kind, temperature=temperature, max_steps=5, **settings)
    check_signals(trainer, temperature)


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=NAMES)
def test_entropy_equals_trls_metric_on_the_same_batch(kind, settings):
    # one optimizer step for each generation batch and equal lengths: TRL's mean is exact then
    settings = settings | {
        "num_iterations": 1,
        "gradient_accumulation_steps": settings.get("steps_per_generation", 1),
        "generation_kwargs": {"suppress_tokens": [TOKENIZER.eos_token_id]},
    }
    trainer = witnessed(kind, **settings)
    for row in rows(trainer):
        assert row["entropy/measured"] == pytest.approx(row["entropy"], abs=2e-6)
        assert row["completions/min_length"] == 8


class _PassCounter:
    """Counts the rows that the backbone scores without gradients, generation aside."""

    def __init__(self):
        self.rows, self.inside = 0, False

    def hear(self, module, inputs, kwargs, output):
        if self.inside and not torch.is_grad_enabled():
            self.rows += len(inputs[0] if inputs else kwargs["input_ids"])


def passes_before_update(kind, cls, settings, **more):
    """Rows scored without gradients for each rollout, over a run."""

    class Counting(cls):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            counter.inside = True
            try:
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)
            finally:
                counter.inside = False

    model = tiny_model()
    counter = _PassCounter()
    model.base_model.register_forward_hook(counter.hear, with_kwargs=True)
    trainer = make_trainer(kind, Counting, model=model, max_steps=4, **settings, **more)
    trainer.train()
    batches = 4 * settings.get("gradient_accumulation_steps", 1)
    batches //= settings.get("steps_per_generation", 1) * settings.get("num_iterations", 1)
    return counter.rows / (16 * batches)


@pytest.mark.parametrize(
    ("kind", "settings", "plain"),
    [
        ("grpo", ALIGNED, 0),
        ("grpo", STEPS_OF_FOUR, 0),
        ("grpo", {"num_iterations": 2}, 1),
        ("grpo", {"per_device_train_batch_size": 8, "steps_per_generation": 2}, 1),
        ("grpo", REUSED, 1),
        ("rloo", ALIGNED, 1),
        ("rloo", REUSED, 1),
    ],
)
def test_one_pass_at_most_before_the_update_and_one_after(kind, settings, plain):
    """None before it where the loss is the first to score the batch, unless one is asked for."""

    def passes(cls, **more):
        return passes_before_update(kind, cls, settings, **more)

    # mini-batches of several steps, each rollout in one of them
    several = settings.get("steps_per_generation", 1) > settings.get(
        "gradient_accumulation_steps", 1
    )
    later_updates_tell = kind == "grpo" and several and settings.get("num_iterations", 1) == 1
    assert passes(PLAIN[kind]) == plain
    schedule = "linear(initial, 2.0, 4)"
    for extra_pass in (False, True):
        before = 1 if extra_pass else plain
        for remeasure in (0, 1):
            control = EntropyController(schedule, remeasure=remeasure, extra_pass=extra_pass)
            after = 0 if later_updates_tell else remeasure
            assert passes(WITNESSES[kind], entropy_control=control) == before + after
    after = 0 if later_updates_tell else 1
    assert passes(WITNESSES[kind], entropy_control=2.5) == plain + after
    watcher = EntropyController(None, rule=None)
    assert passes(WITNESSES[kind], entropy_control=watcher) == plain


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=NAMES)
def test_the_head_sees_a_few_positions_at_a_time(kind, settings, monkeypatch):
    monkeypatch.setattr(effects, "_CHUNK_ELEMENTS", 5 * VOCABULARY)
    model, positions = tiny_model(), []

    def hear(module, inputs, output):
        if inputs[0].ndim == 2:  # TRL itself hands over (B, T, D)
            positions.append(len(inputs[0]))

    model.get_output_embeddings().register_forward_hook(hear)
    trainer = witnessed(kind, model, max_steps=2, **settings)
    check_signals(trainer)
    assert max(positions) == 5
    batch = trainer.batches[0]
    assert sum(positions) == len(trainer.batches) * batch["completion_ids"].numel()


def test_methods_that_need_no_sensitivity_cost_no_head():
    model, calls = tiny_model(), []
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: calls.append(inputs[0].ndim)
    )
    trainer = witnessed(model=model, control=EntropyController(2.5, effect="sampled"), max_steps=2)
    assert 2 not in calls
    assert trainer.batches[0]["signals"].sensitivity is None


# ---------------------------------------------------------------- adapters and reference


def lora(*modules):
    torch.manual_seed(0)  # the adapter's weights are drawn from the global generator
    return LoraConfig(
        r=4, target_modules=list(modules), init_lora_weights=False, task_type="CAUSAL_LM"
    )


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=NAMES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_adapters_policy_is_heard_not_its_reference(kind, settings, beta):
    trainer = witnessed(
        kind, peft_config=lora("q_proj", "v_proj"), beta=beta, max_steps=3, **settings
    )
    first = check_signals(trainer)
    with trainer.model.disable_adapter():
        reference = by_definition(full_logits(trainer.model, first), first["completion_ids"], 1.0)
    mask = first["completion_mask"].bool()
    assert float((first["signals"].logprobs - reference[0])[mask].abs().mean()) > 0.01


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=NAMES)
def test_a_separate_reference_model_is_not_heard(kind, settings, tmp_path):
    model = saved(tiny_model(), tmp_path)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(1.5)
    check_signals(witnessed(kind, model, beta=0.1, max_steps=3, **settings))


def test_an_adapter_on_the_head_is_right_or_refused_by_trl():
    result = outcome(peft_config=lora("q_proj", "lm_head"), max_steps=2)
    if isinstance(result, ValueError):
        assert "lm_head" in str(result)  # TRL's own refusal, where its head is fused
    else:
        check_signals(result)


# ---------------------------------------------------------------- models


ARCHITECTURES = {
    "tied": lambda: tiny_model(tie_word_embeddings=True, sharpness=6.0),
    "untied": lambda: tiny_model(),
    "soft-capped": lambda: tiny_model(Gemma2Config(**tiny_shape(), final_logit_softcapping=2.0)),
    "scaled": lambda: tiny_model(CohereConfig(**tiny_shape(), logit_scale=0.4)),
    "divided": lambda: tiny_model(GraniteConfig(**tiny_shape(), logits_scaling=2.5)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [ALIGNED, REUSED], ids=["aligned", "reused"])
def test_what_architectures_do_after_the_head(name, settings):
    check_signals(witnessed(model=ARCHITECTURES[name](), max_steps=2, **settings))


def test_unknown_logits_are_refused_unless_they_are_right():
    model = tiny_model()
    # TRL's fused head multiplies by the weight itself and passes such a hook by
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: 3 * output)
    result = outcome(model=model, max_steps=1)
    if isinstance(result, RuntimeError):
        assert "Qwen3ForCausalLM" in str(result)
        assert "use effect='sampled'" in str(result)
    else:
        check_signals(result)


@pytest.mark.parametrize("settings", [ALIGNED, REUSED], ids=["aligned", "reused"])
def test_gradient_checkpointing(settings):
    check_signals(witnessed(gradient_checkpointing=True, max_steps=2, **settings))


@pytest.mark.parametrize("cast", [False, True], ids=["", "fp32-head"])
@pytest.mark.parametrize("settings", [ALIGNED, REUSED], ids=["aligned", "reused"])
def test_bfloat16_weights(settings, cast):
    trainer = witnessed(
        model=tiny_model().bfloat16(), max_steps=2, cast_lm_head_to_fp32=cast, **settings
    )
    check_signals(trainer, tolerance=0.1)


@pytest.mark.parametrize("settings", [ALIGNED, REUSED], ids=["aligned", "reused"])
def test_bfloat16_autocast(settings):
    check_signals(witnessed(bf16=True, max_steps=2, **settings), tolerance=0.1)


def test_model_inputs_of_the_batch_go_into_the_pass():
    scored = []

    class Asked(EntropyControlMixin, PLAIN["grpo"]):
        def _get_per_token_logps_and_entropies(self, model, ids, *args, **kwargs):
            # the tiny model takes none
            scored.append((ids, kwargs.pop("mm_token_type_ids", None)))
            return super()._get_per_token_logps_and_entropies(model, ids, *args, **kwargs)

    control = EntropyController(2.5, effect="logit")
    trainer = make_trainer("grpo", Asked, entropy_control=control)
    output = generation_batch(trainer)
    # each row its own number, so that rows that are scored in another order are told apart
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    types = torch.arange(len(ids))[:, None].expand_as(ids)
    scored.clear()
    trainer._signals.ask(output | {"mm_token_type_ids": types})
    assert sum(len(found) for _, found in scored) == len(ids)
    for part, found in scored:
        assert part.shape == found.shape
        for row, number in zip(part, found[:, 0].tolist(), strict=True):
            assert torch.equal(row, ids[number, : len(row)])
