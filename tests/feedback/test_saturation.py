"""The saturation monitor: when it speaks, and how often."""

import pytest

from entrocraft.feedback.saturation import Remedies, SaturationMonitor
from entrocraft.rollouts import StepInfo

STEP = StepInfo(0, learning_rate=3e-4)
REMEDIES = Remedies(tilt=True)


def metrics(saturated=1.0, pressure=8.0, measured=0.4):
    return {
        "entropy/saturated": saturated,
        "entropy/pressure": pressure,
        "entropy/target": 0.6,
        "entropy/measured": measured,
        "entropy/kept_fraction": 0.25,
    }


def watch(monitor, saturated, useful=5, **numbers):
    """Monitor after these decisions, and the texts of each."""
    texts = []
    for value in saturated:
        monitor, new = monitor.check(metrics(value, **numbers), useful, REMEDIES, STEP)
        texts.append(new)
    return monitor, texts


def test_a_target_above_reach_is_told_after_ten_batches_and_after_forty():
    monitor, texts = watch(SaturationMonitor(), [1.0] * 60)
    assert [len(text) for text in texts] == [int(index in (9, 39)) for index in range(60)]
    assert monitor.saturated_in_a_row == 60
    assert monitor.gap == pytest.approx(-0.2)
    assert monitor.warned == ("missed", "saturated")
    (text,) = texts[9]
    assert text == (
        "entropy has been below its schedule for 10 optimizer steps with rejection at its limit: "
        "target 0.600, measured 0.400 nats per token, keeping 25% of the rollouts. Rejection alone "
        "cannot do more: lower the learning rate (now 0.0003), ask for less entropy or use "
        "rule='tilt'"
    )
    (text,) = texts[39]
    assert text == (
        "the schedule is being missed: over the last 40 steps entropy was 0.200 nats per token "
        "below it on average; the target is now 0.600"
    )


def test_a_target_below_reach_has_the_other_remedy():
    monitor, texts = watch(SaturationMonitor(), [1.0] * 10, pressure=-8.0, measured=0.9)
    assert monitor.saturated_in_a_row == -10
    (text,) = texts[9]
    assert "entropy has been above its schedule for 10 optimizer steps" in text
    assert text.endswith(
        "cannot do more: raise the learning rate (now 0.0003), give the schedule more steps or use "
        "rule='tilt'"
    )


def test_the_gap_is_the_mean_over_the_batches_at_the_limit():
    monitor = SaturationMonitor()
    for measured in (0.5, 0.3, 0.4):
        monitor, _ = monitor.check(metrics(measured=measured), 5, REMEDIES, STEP)
    assert monitor.gap == pytest.approx(-0.2)
    monitor, _ = monitor.check(metrics(pressure=-8.0, measured=0.7), 5, REMEDIES, STEP)
    assert (monitor.saturated_in_a_row, monitor.gap) == (-1, pytest.approx(0.1))


@pytest.mark.parametrize("measured", [0.59, 0.7])
def test_a_schedule_that_is_held_at_the_limit_is_no_warning(measured):
    assert not any(watch(SaturationMonitor(), [1.0] * 60, measured=measured)[1])


def test_a_break_starts_the_count_anew():
    monitor, texts = watch(SaturationMonitor(), ([1.0] * 9 + [0.0]) * 5)
    assert not any(texts)
    assert monitor == SaturationMonitor()


def test_an_emptied_batch_is_told_once_and_at_once():
    monitor, texts = watch(SaturationMonitor(), [0.0] * 3, useful=0)
    assert [len(text) for text in texts] == [1, 0, 0]
    assert texts[0][0] == (
        "no rollout with a non-zero advantage is left in a batch (logged as entropy/empty): the "
        "rollouts of each prompt had one reward, or were rejected. Its update carries no policy "
        "gradient, the optimizer still moves by momentum and weight decay. If it stays so, look at "
        "the reward, or at how hard the task is"
    )
    assert monitor.warned == ("empty",)
    both, texts = watch(monitor, [1.0] * 20, useful=0)
    assert both.warned == ("empty", "saturated")
    assert sum(map(len, texts)) == 1


@pytest.mark.parametrize("useful", [0, 1])
def test_it_is_never_changed_in_place(useful):
    monitor = SaturationMonitor(9, -0.2)
    first = monitor.check(metrics(), useful, REMEDIES, STEP)
    assert monitor == SaturationMonitor(9, -0.2)
    assert monitor.check(metrics(), useful, REMEDIES, STEP) == first


def test_a_batch_counts_by_its_optimizer_steps():
    monitor, texts = SaturationMonitor(), []
    for measured in (0.5, 0.4, 0.3):
        monitor, new = monitor.check(metrics(measured=measured), 5, REMEDIES, StepInfo(0, 4.0))
        texts.append(len(new))
    assert (monitor.saturated_in_a_row, texts) == (12, [0, 0, 1])
    assert monitor.gap == pytest.approx(-0.2)
    monitor, _ = SaturationMonitor().check(metrics(), 5, REMEDIES, StepInfo(0, 0.25))
    assert monitor.saturated_in_a_row == 1
