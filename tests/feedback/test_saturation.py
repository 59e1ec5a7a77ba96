"""The saturation monitor: when it speaks, and how often."""

import pytest

from entrocraft.feedback.saturation import SaturationMonitor

REMEDIES = ["make it slower", "give more rollouts", "raise the learning rate"]


def metrics(saturated=1.0):
    return {
        "entropy/saturated": saturated,
        "entropy/target": 0.6,
        "entropy/measured": 0.4,
        "entropy/kept_fraction": 0.25,
    }


def watch(monitor, saturated, useful=5):
    """Monitor after these decisions, and the texts of each."""
    texts = []
    for value in saturated:
        monitor, new = monitor.check(metrics(value), useful, REMEDIES)
        texts.append(new)
    return monitor, texts


def test_twenty_saturated_batches_in_a_row_are_told_once():
    monitor, texts = watch(SaturationMonitor(), [1.0] * 60)
    assert [bool(text) for text in texts] == [index == 19 for index in range(60)]
    assert monitor.saturated_in_a_row == 60
    assert monitor.warned == ("saturated",)
    (text,) = texts[19]
    assert text == (
        "entropy control has been saturated for 20 batches: target 0.600, measured 0.400 nats per "
        "token, keeping 25% of the rollouts. The schedule asks for more than rejection can do: "
        "make it slower, give more rollouts or raise the learning rate"
    )


def test_a_break_starts_the_count_anew():
    monitor, texts = watch(SaturationMonitor(), ([1.0] * 19 + [0.0]) * 5)
    assert not any(texts)
    assert monitor == SaturationMonitor()


def test_an_emptied_batch_is_told_once_and_at_once():
    monitor, texts = watch(SaturationMonitor(), [0.0] * 3, useful=0)
    assert [len(text) for text in texts] == [1, 0, 0]
    assert texts[0][0] == (
        "no rollout with a non-zero advantage is left in a batch (logged as entropy/empty); its "
        "update carries no policy gradient, the optimizer still moves by momentum and weight decay"
    )
    assert monitor.warned == ("empty",)
    both, texts = watch(monitor, [1.0] * 20, useful=0)
    assert both.warned == ("empty", "saturated")
    assert sum(map(len, texts)) == 1


@pytest.mark.parametrize("useful", [0, 1])
def test_it_is_never_changed_in_place(useful):
    monitor = SaturationMonitor(19)
    first = monitor.check(metrics(), useful, REMEDIES)
    assert monitor == SaturationMonitor(19)
    assert monitor.check(metrics(), useful, REMEDIES) == first
