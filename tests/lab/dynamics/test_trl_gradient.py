"""The gradient level in TRL's trainers: what it foretells is what a training step then does.

Also a script: torchrun --nproc_per_node 2 test_trl_gradient_level.py OUTPUT_DIR
"""

import json
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from peft import LoraConfig

from entrocraft import Decision, EntropyController
from entrocraft.lab.dynamics.trl_gradient import GradientReader
from tests.trl.runs import (
    CONTROLLED,
    PLAIN,
    REUSED,
    generation_batch,
    make_trainer,
    rows,
    tiny_model,
)

ONE = {"max_steps": 1}
MANY = REUSED | {"max_steps": 4}
"""4 optimizer steps, each on half of the rollouts, in 2 micro-batches."""

SPLIT = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 4,
    "max_steps": 1,
}
"""One optimizer step in 4 micro-batches."""

PART = {
    "per_device_train_batch_size": 8,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 2,
    "max_steps": 1,
}
"""Two generation batches make one optimizer step."""

# a rollout less changes the norm: what is foretold exactly is the whole batch
CLIPPED = {"max_grad_norm": 0.05, "learning_rate": 2e-4, "keep": lambda _, n: torch.ones(n)}


class Chosen:
    """Method that keeps what it is told to keep, and remembers what it was asked."""

    effect = "gradient"

    def __init__(self, keep=None, refresh=1):
        self.keep = keep or some
        self.refresh = refresh
        self.asked = []

    def prepare(self, **bounds):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def decide(self, batch, **clock):
        weights = self.keep(len(self.asked), len(batch)).double()
        advantages = batch.advantages * weights
        kept = advantages * batch.sensitivity
        self.asked.append(
            SimpleNamespace(
                stats=batch, clock=clock, effect=float(kept.sum()) / float(batch.tokens.sum())
            )
        )
        return Decision(weights, weights.clone(), advantages)


def some(decision, count):
    return (7 * torch.arange(count) + decision) % 3 != 0


def all_of_them(decision, count):
    return torch.ones(count)


def first_batch_alone(decision, count):
    return some(decision, count) * (decision == 0)


def seeing(cls, change=None):
    """Trainer that keeps each generation batch, the weights it met and what was read of it."""

    class Seeing(cls):
        def __init__(self, *args, **kwargs):
            self.batches, self.weights, self.responses = [], [], []
            super().__init__(*args, **kwargs)

        def _decide_on(self, output):
            if change:
                output |= change(output)
            self.batches.append({k: v for k, v in output.items() if isinstance(v, torch.Tensor)})
            self.weights.append({k: v.clone() for k, v in self.model.state_dict().items()})
            super()._decide_on(output)

        def _differentiate(self, *args):
            sensitivity, response = super()._differentiate(*args)
            self.responses.append(response)
            return sensitivity, response

    return Seeing


def trained(kind="grpo", keep=some, model=None, change=None, refresh=1, **settings):
    method = Chosen(keep, refresh)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL advises against some of these losses
        trainer = make_trainer(
            kind,
            seeing(CONTROLLED[kind], change),
            model=model or tiny_model(ends=True).double(),  # small steps leave no rounding
            entropy_control=method,
            **{"optim": "sgd", "learning_rate": 2e-6, "max_grad_norm": 0.0} | settings,
        )
        trainer.train()
    return trainer, method


def entropy_sum(trainer, batch):
    """Sum of the entropies of the batch's response tokens, and their number."""
    training = trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(
            input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        ).logits[:, -batch["completion_ids"].size(1) - 1 : -1]
    trainer.model.train(training)
    log_p = (logits.double() / trainer.temperature).log_softmax(-1)
    mask = batch["completion_mask"] * batch.get("tool_mask", 1)
    return float((-(log_p.exp() * log_p).sum(-1) * mask).sum()), int(mask.sum())


def entropy_with(trainer, batch, weights):
    trainer.model.load_state_dict(weights)
    nats, tokens = entropy_sum(trainer, batch)
    return nats / tokens


def change_of_entropy(trainer, index=0):
    """What training did to the mean entropy of one generation batch."""
    after = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    batch, before = trainer.batches[index], trainer.weights[index]
    return entropy_with(trainer, batch, after) - entropy_with(trainer, batch, before)


def assert_foretold(trainer, method, rel):
    asked = method.asked[0]
    foretold = asked.clock["optimizer_steps"] * asked.effect
    assert abs(foretold) > 1e-7
    assert change_of_entropy(trainer) == pytest.approx(foretold, rel=rel)


LOSSES = ["grpo", "sapo", "dr_grpo", "luspo", "bnpo", "dapo", "cispo", "vespo"]
MASKED_LUSPO = not trl.__version__.startswith("1.5.")  # later versions mask padding there


@pytest.mark.parametrize("settings", [ONE, SPLIT, MANY], ids=["one", "split", "many"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_grpo(loss_type, level, settings):
    if (loss_type, level) == ("vespo", "sequence"):
        pytest.skip("TRL refuses the pair")
    if (loss_type, level) == ("luspo", "token") and not MASKED_LUSPO:
        pytest.skip("refused, see below")
    trainer, method = trained(loss_type=loss_type, importance_sampling_level=level, **settings)
    tokens = method.asked[0].stats.tokens
    assert len(tokens) == 16
    assert int(tokens.min()) < int(tokens.max())  # or normalizers by length would go untested
    # bnpo divides by the tokens of micro-batches that are yet to be drawn; luspo's steps are long
    rel = 0.05 if settings is not ONE and loss_type in ("bnpo", "luspo") else 0.01
    assert_foretold(trainer, method, rel)


@pytest.mark.parametrize("settings", [ONE, SPLIT, MANY], ids=["one", "split", "many"])
def test_rloo(settings):
    assert_foretold(*trained("rloo", **settings), rel=0.02)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_batch_that_is_half_a_step(kind):
    # the second half is rejected as a whole, so the step is the first half's
    trainer, method = trained(kind, keep=first_batch_alone, **PART)
    assert [asked.clock["optimizer_steps"] for asked in method.asked] == [0.5, 0.5]
    assert_foretold(trainer, method, rel=0.01)


def test_clipped_importance_weights_shorten_the_step():
    # CISPO caps the ratio itself: at 0.2 by default, where on-policy ratios are 1
    short, long = (
        trained(loss_type="cispo", epsilon_high=cap, **ONE)[1].asked[0] for cap in (0.2, 5.0)
    )
    torch.testing.assert_close(short.stats.sensitivity, 0.2 * long.stats.sensitivity)


def test_clipping_by_norm():
    free = trained(**CLIPPED | ONE | {"max_grad_norm": 0.0})[1].asked[0]
    trainer, method = trained(**CLIPPED | ONE)
    assert abs(method.asked[0].effect) < 0.5 * abs(free.effect)
    assert_foretold(trainer, method, rel=0.01)


def test_tokens_below_the_entropy_quantile_are_not_pushed():
    trainer, method = trained(top_entropy_quantile=0.3, **ONE)
    assert_foretold(trainer, method, rel=0.01)


def test_tool_tokens_take_no_part():
    def tools(output):
        mask = torch.ones_like(output["completion_mask"])
        mask[::2, 1:3] = 0
        return {"tool_mask": mask}

    trainer, method = trained(change=tools, **ONE)
    assert float(method.asked[0].stats.tokens.sum()) < int(
        trainer.batches[0]["completion_mask"].sum()
    )
    assert_foretold(trainer, method, rel=0.01)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_temperature(temperature):
    assert_foretold(*trained(temperature=temperature, **ONE), rel=0.01)


def test_adapters():
    torch.manual_seed(0)  # the adapter's weights are drawn from the global generator
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer, method = trained(peft_config=config, learning_rate=1e-4, beta=0.0, **ONE)
    assert {p.ndim for p in trainer.responses[0].direction} == {2}
    assert len(trainer.responses[0].direction) == 8  # A and B of two modules in two layers
    assert_foretold(trainer, method, rel=0.02)


def test_adam_with_momentum_under_way():
    trainer, method = trained(
        optim="adamw_torch", weight_decay=0.0, learning_rate=1e-6, max_steps=12, num_iterations=1
    )
    weights = [*trainer.weights[1:], {k: v.clone() for k, v in trainer.model.state_dict().items()}]
    foretold, happened, pushed = [], [], []
    for index, (asked, response) in enumerate(zip(method.asked, trainer.responses, strict=True)):
        assert asked.clock["drift"] == response.pending
        assert asked.clock["momentum"] == 0.9
        pushed.append(response.share * asked.effect)
        foretold.append(pushed[-1] + response.momentum_share * response.pending)
        before, after = (
            entropy_with(trainer, trainer.batches[index], w)
            for w in (trainer.weights[index], weights[index])
        )
        happened.append(after - before)
    assert method.asked[0].clock["drift"] == 0
    foretold, happened, pushed = map(torch.tensor, (foretold[4:], happened[4:], pushed[4:]))
    size = float(happened.abs().mean())
    assert float((foretold - happened).abs().mean()) < 0.15 * size
    # without the drift it would be a bad guess
    assert float((pushed - happened).abs().mean()) > 0.5 * size


def test_other_levels_learn_the_momentum_too():
    class Sampled(Chosen):
        effect = "sampled"

        def decide(self, batch, **clock):
            assert batch.sensitivity is None
            self.asked.append(clock)
            ones = torch.ones(len(batch))
            return Decision(ones, ones, batch.advantages)

    for optim, momentum in (("adamw_torch", 0.9), ("sgd", 0.0), ("adafactor", None)):
        method = Sampled()
        make_trainer(entropy_control=method, optim=optim, max_steps=1).train()
        assert [(clock["momentum"], clock["drift"]) for clock in method.asked] == [(momentum, None)]


# ---------------------------------------------------------------- nothing else is touched


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("settings", [{}, REUSED], ids=["aligned", "reused"])
def test_reading_leaves_the_run_as_it_is(kind, settings):
    settings = settings | {"max_steps": 4, "gradient_checkpointing": True}
    plain = make_trainer(kind, PLAIN[kind], model=tiny_model(attention_dropout=0.3), **settings)
    plain.train()
    method = Chosen(all_of_them)
    model = tiny_model(attention_dropout=0.3)
    read = make_trainer(kind, model=model, entropy_control=method, **settings)
    read.train()
    assert method.asked[0].effect != 0
    assert rows(read) == rows(plain)


def test_the_question_to_the_loss_leaves_no_trace():
    class Traced(CONTROLLED["grpo"]):
        def _differentiate(self, *args):
            before = dict(vars(self)), json.dumps(self._metrics), torch.get_rng_state()
            result = super()._differentiate(*args)
            after = dict(vars(self)), json.dumps(self._metrics), torch.get_rng_state()
            assert list(before[0]) == list(after[0])
            assert all(after[0][name] is value for name, value in before[0].items())
            assert before[1] == after[1]
            assert torch.equal(before[2], after[2])
            assert all(p.grad is None or not p.grad.any() for p in self.model.parameters())
            assert self.model.training
            return result

    method = Chosen()
    make_trainer("grpo", Traced, entropy_control=method, **MANY).train()
    assert method.asked


def test_a_controller_that_only_observes_is_not_read_for():
    trainer = make_trainer(entropy_control=EntropyController(None, rule=None, effect="gradient"))
    assert trainer._gradient is None


def test_a_controller_steers_by_it():
    control = EntropyController(2.0, effect="gradient")
    trainer = make_trainer(entropy_control=control)
    trainer.train()
    assert all(0 <= row["entropy/kept_fraction"] <= 1 for row in rows(trainer))
    assert len(rows(trainer)) == 4


# ---------------------------------------------------------------- one direction, many decisions


def count_directions(monkeypatch):
    counts = []
    plain = GradientReader.read

    def read(self, trainer, passes):
        fresh = self._effect
        result = plain(self, trainer, passes)
        counts.append(self._effect is not fresh)
        return result

    monkeypatch.setattr(GradientReader, "read", read)
    return counts


@pytest.mark.parametrize(
    ("settings", "decisions"),
    [({"max_steps": 6}, 6), (REUSED | {"max_steps": 24}, 6), (PART | {"max_steps": 3}, 6)],
    ids=["one", "many", "part"],
)
def test_a_direction_serves_some_decisions(settings, decisions, monkeypatch):
    counts = count_directions(monkeypatch)
    trained(refresh=3, **settings)
    assert counts == [True, False, False, True, False, False]
    assert len(counts) == decisions


@pytest.mark.parametrize("step", [3, 4])
def test_resuming_goes_on_with_the_same_directions(step, tmp_path):
    settings = {"refresh": 2, "learning_rate": 1e-3, "max_steps": 7, "save_steps": step}
    settings |= {"save_strategy": "steps", "output_dir": str(tmp_path), "optim": "adamw_torch"}
    _, whole = trained(keep=all_of_them, model=tiny_model(), **settings)
    resumed = Chosen(all_of_them, 2)
    trainer = make_trainer(
        model=tiny_model(),
        entropy_control=resumed,
        **{"max_grad_norm": 0.0} | {k: v for k, v in settings.items() if k != "refresh"},
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert len(resumed.asked) == 7 - step
    for again, before in zip(resumed.asked, whole.asked[step:], strict=True):
        assert again.clock["step"] == before.clock["step"]
        # between refreshes, the first direction's policy is gone; the next one is on time again
        same = torch.equal(again.stats.sensitivity, before.stats.sensitivity)
        assert same == (again.clock["step"] != 3)


# ---------------------------------------------------------------- arithmetic


def test_bfloat16_autocast(monkeypatch):
    both = []

    class Twice(CONTROLLED["grpo"]):
        def _differentiate(self, reader, output, mask, signals):
            types = set()
            handle = self.model.model.layers[0].mlp.down_proj.register_forward_hook(
                lambda module, inputs, out: types.add(out.dtype)
            )
            low, response = super()._differentiate(reader, output, mask, signals)
            assert types == {torch.bfloat16}
            with monkeypatch.context() as patch:
                patch.setattr(self.accelerator.state, "_mixed_precision", "no")
                patch.setattr(self.accelerator, "autocast", None)
                types.clear()
                passes = reader.passes(self, output, mask, signals)
                exact, _ = GradientReader(self).read(self, passes)
            assert types == {torch.float32}
            handle.remove()
            both.append((low[mask], exact[mask]))
            return low, response

    trainer = make_trainer(
        "grpo", Twice, entropy_control=Chosen(), bf16=True, optim="sgd", max_steps=3
    )
    trainer.train()
    assert len(both) == 3
    for low, exact in both:
        assert low.dtype == torch.float32
        assert float(torch.corrcoef(torch.stack([low, exact]))[0, 1]) > 0.99
        assert float(low.norm() / exact.norm()) == pytest.approx(1, rel=0.1)


# ---------------------------------------------------------------- refusals


def refused(match, cls=None, before=None, **settings):
    with pytest.raises(ValueError, match=match):
        trained_by(cls, before, **settings)


def trained_by(cls, before, **settings):
    trainer = make_trainer("grpo", cls, entropy_control=Chosen(), max_steps=1, **settings)
    if before:
        before(trainer)
    trainer.train()


@pytest.mark.parametrize("optim", ["adafactor", "rmsprop"])
def test_unknown_optimizers(optim):
    refused(r"knows torch's SGD, Adam and AdamW, not .*choose effect='logit'", optim=optim)


@pytest.mark.parametrize(
    ("flag", "name"), [("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")]
)
def test_sharded_parameters(flag, name):
    trainer = make_trainer()
    setattr(trainer, flag, True)
    with pytest.raises(ValueError, match=f"on every rank, which {name} shards.*'logit'"):
        GradientReader(trainer)


def test_kernels_without_forward_mode():
    trainer = make_trainer()
    trainer.args.use_liger_kernel = True
    with pytest.raises(ValueError, match="Liger kernels do not have; set use_liger_kernel=False"):
        GradientReader(trainer)
    trainer.args.use_liger_kernel = False
    trainer.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2' does not have.*'sdpa'"):
        GradientReader(trainer)


def test_reentrant_checkpointing():
    trainer = make_trainer()
    trainer.args.gradient_checkpointing_kwargs = {"use_reentrant": True}
    with pytest.raises(ValueError, match="set gradient_checkpointing_kwargs="):
        GradientReader(trainer)


class Opaque(torch.autograd.Function):
    """A kernel of somebody's."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_an_operation_without_forward_mode():
    model = tiny_model()
    norm = model.model.norm
    plain = norm.forward
    norm.forward = lambda hidden: Opaque.apply(plain(hidden))
    refused("an operation of Qwen3ForCausalLM has none.*use effect='logit'", model=model)


def test_a_loss_that_cannot_be_asked():
    class Silent(CONTROLLED["grpo"]):
        def _compute_loss(self, model, inputs):
            return sum(p.sum() for p in model.parameters())

    refused(r"Silent \(loss_type='dapo'\) is no function of .*use effect='logit'", Silent)


def test_a_loss_beyond_the_mask():
    class Beyond(CONTROLLED["grpo"]):
        def _compute_loss(self, model, inputs):
            everywhere = torch.ones_like(inputs["completion_mask"])
            return super()._compute_loss(model, inputs | {"completion_mask": everywhere})

    refused("trains tokens outside the response mask", Beyond, model=tiny_model(ends=True))


def test_a_loss_of_ones_own_is_weighed_by_itself():
    class Triple(CONTROLLED["grpo"]):
        def _compute_loss(self, model, inputs):
            return 3 * super()._compute_loss(model, inputs)

    once, thrice = (Chosen(), Chosen())
    for cls, method in ((None, once), (Triple, thrice)):
        make_trainer(
            "grpo", cls, entropy_control=method, optim="sgd", max_grad_norm=0.0, max_steps=1
        ).train()
    one, three = (method.asked[0].stats.sensitivity for method in (once, thrice))
    torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize("name", ["pixel_values", "mm_token_type_ids"])
def test_inputs_besides_text(name):
    cls = seeing(CONTROLLED["grpo"], lambda output: {name: torch.zeros(16, 1)})

    class Asking(cls):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            kwargs[name] = None  # the tiny model takes none
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    refused(f"reads text alone; this batch also holds {name}; use effect='logit'", Asking)


def test_before_training_there_is_no_optimizer():
    trainer = make_trainer(entropy_control=Chosen())
    with pytest.raises(ValueError, match=r"needs the optimizer, which exists once train\(\)"):
        generation_batch(trainer)


def test_another_policy_than_trls():
    class Sharper(CONTROLLED["grpo"]):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            logprobs, *others = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            return (1.5 * logprobs, *others)

    refused("Qwen3ForCausalLM cannot be trusted.*use effect='sampled'", Sharper)


@pytest.mark.parametrize("refresh", [0, -2])
def test_bad_refresh(refresh):
    with pytest.raises(ValueError, match=f"refresh must be at least 1 decision, got {refresh}"):
        make_trainer(entropy_control=Chosen(refresh=refresh))


# ---------------------------------------------------------------- processes


def ranks(output_dir):
    """Take one step on each rank and write down what was foretold and what came."""
    rank = None
    seen = defaultdict(list)
    for kind, more in CASES_OF_RANKS.items():
        trainer, method = trained(kind.split("-")[0], output_dir=str(output_dir / kind), **more)
        rank = trainer.accelerator.process_index
        assert trainer.accelerator.num_processes == 2
        batch = trainer.batches[0]
        after = entropy_sum(trainer, batch)
        trainer.model.load_state_dict(trainer.weights[0])
        before = entropy_sum(trainer, batch)
        seen[kind] = {
            "before": before,
            "after": after,
            "foretold": method.asked[0].clock["optimizer_steps"] * method.asked[0].effect,
            "sensitivity": method.asked[0].stats.sensitivity.tolist(),
        }
    (output_dir / f"{rank}.json").write_text(json.dumps(seen))


_HALF = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 1}
CASES_OF_RANKS = {
    f"{kind}-{name}": {"gradient_accumulation_steps": 2, **_HALF} | more
    for kind, name, more in (
        ("grpo", "dapo", {"loss_type": "dapo"}),
        ("grpo", "grpo", {"loss_type": "grpo"}),
        ("grpo", "clipped", CLIPPED),
        ("rloo", "rloo", {}),
    )
}


@pytest.mark.slow
def test_two_processes(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, "--nproc_per_node", "2", __file__, str(tmp_path)],
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert list(first) == list(CASES_OF_RANKS)
    for kind in first:
        a, b = first[kind], second[kind]
        assert a["foretold"] == b["foretold"]
        assert a["sensitivity"] == b["sensitivity"]
        assert len(a["sensitivity"]) == 16
        tokens = a["before"][1] + b["before"][1]
        realized = (a["after"][0] + b["after"][0] - a["before"][0] - b["before"][0]) / tokens
        assert realized == pytest.approx(a["foretold"], rel=0.02), kind


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks(Path(sys.argv[1]))
