"""The set of problems that the start solves now and then."""

import json
from dataclasses import replace

import pytest

from entrocraft.lab.models import ReasonerConfig, build_reasoner, build_tokenizer
from entrocraft.lab.tasks import get_task
from entrocraft.lab.training import perfectible as module
from entrocraft.lab.training.config import TaskConfig, TrainConfig
from entrocraft.lab.training.perfectible import perfectible

SHAPE = ReasonerConfig(hidden_size=32, layers=1, heads=2, intermediate_size=32)


@pytest.fixture
def policy():
    tokenizer = build_tokenizer()
    return build_reasoner(SHAPE, tokenizer), tokenizer


def config(tmp_path, **task):
    return TrainConfig(
        cache_dir=tmp_path, prompts=2, max_completion_length=4, task=TaskConfig("maze", **task)
    )


class Known(type(get_task("maze"))):
    """Right as often as the problem's place says, of ten answers."""

    def verify(self, problem, completion):
        self.asked[problem.key] = self.asked.get(problem.key, 0) + 1
        return float(self.asked[problem.key] <= self.places[problem.key])


def test_problems_within_the_pass_rate_are_kept(tmp_path, policy, monkeypatch):
    monkeypatch.setattr(module, "_PROMPTS_AT_A_TIME", 4)
    task = Known()
    problems = task.problems("train", 11)
    task.asked, task.places = {}, {problem.key: i for i, problem in enumerate(problems)}
    settings = config(tmp_path, pass_rate=[0.2, 0.8], pass_tries=10)
    kept = perfectible(settings, *policy, task, problems, False)
    assert kept == problems[2:9]
    assert set(task.asked.values()) == {10}
    # other bounds ask the model nothing more; other weights do
    wider = replace(settings, task=replace(settings.task, pass_rate=[0.0, 0.1]))
    assert perfectible(wider, *policy, task, problems, False) == problems[:2]
    assert set(task.asked.values()) == {10}
    model = build_reasoner(SHAPE, policy[1], seed=1)
    task.asked = {}
    perfectible(settings, model, policy[1], task, problems, False)
    assert len(task.asked) == 11
    assert len(list((tmp_path / "pass_rates").glob("*.json"))) == 2
    assert json.loads(next((tmp_path / "pass_rates").glob("*.json")).read_text()) == list(range(11))


def test_too_few_are_told(tmp_path, policy):
    task = get_task("maze")
    problems = task.problems("train", 3)
    settings = config(tmp_path, pass_rate=[0.9, 1.0], pass_tries=2)
    with pytest.raises(ValueError, match="of 3 problems the start solves only 0 in 90% to 100% of"):
        perfectible(settings, *policy, task, problems, False)


@pytest.mark.parametrize("rate", [[0.2], [0.8, 0.2], [-0.1, 0.5], [0.5, 1.1]])
def test_wrong_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"task\.pass_rate is"):
        TaskConfig(pass_rate=rate)
