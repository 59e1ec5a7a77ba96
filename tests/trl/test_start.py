"""What a TRL run warns of when it starts."""

import warnings

import pytest

from entrocraft import EntropyControlWarning
from tests.trl.runs import make_trainer

RAMP = "linear(initial, 0.9*initial, 2)"


def heard(**settings):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", EntropyControlWarning)
        make_trainer(max_steps=1, **settings).train()
    return [str(w.message) for w in seen if issubclass(w.category, EntropyControlWarning)]


def test_settings_that_keep_entropy_off_its_schedule():
    texts = heard(entropy_control=RAMP, lr_scheduler_type="linear", gradient_accumulation_steps=1)
    starts = [
        "the schedule linear(",
        "each optimizer step trains on 16",
        "the learning rate decays",
    ]
    assert [text[: len(start)] for text, start in zip(texts, starts, strict=True)] == starts
    assert "the run ends after 1:" in texts[0]
    assert "(lr_scheduler_type='linear')" in texts[2]


@pytest.mark.parametrize("scheduler", ["constant", "constant_with_warmup"])
def test_accumulated_batches_count_together(scheduler):
    settings = {"gradient_accumulation_steps": 2, "lr_scheduler_type": scheduler}
    assert heard(entropy_control="constant(initial)", **settings) == []


def test_trl_alone_is_silent():
    assert heard(entropy_control=None, lr_scheduler_type="linear") == []
