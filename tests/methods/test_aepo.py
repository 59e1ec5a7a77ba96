"""AEPO: which rollouts it asks for."""

from entrocraft.methods import get_method
from entrocraft.rollouts import StepInfo
from tests.methods.batches import MEASURED, hand_made


def test_aepo_asks_for_hot_rollouts_below_its_target_and_cold_ones_above():
    hot = get_method("aepo", MEASURED).decide(hand_made(), step=StepInfo(0)).extra
    assert (hot.temperature, hot.taken, hot.rows, hot.share) == (1.2, 1.0, 60, 0.25)
    cold = get_method("aepo", MEASURED - 0.01).decide(hand_made(), step=StepInfo(0)).extra
    assert (cold.temperature, cold.taken) == (0.8, 0.5)
    assert cold.least_advantage == 0.05
    assert cold.advantage == 1.0
