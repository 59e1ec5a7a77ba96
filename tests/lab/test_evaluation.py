"""pass@k by brute force, entropies by definition, and sampling that disturbs nothing."""

import itertools

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from entrocraft.lab.evaluation import (
    Evaluation,
    evaluate,
    pass_at_k,
    sample,
    sharpening,
    sharpening_tax,
)
from entrocraft.lab.models import ReasonerConfig, build_reasoner, build_tokenizer
from entrocraft.lab.tasks import get_task
from entrocraft.lab.tasks.base import completion_text
from entrocraft.lab.tasks.prompts import speaks_chat, text_prompt, trainer_prompt
from entrocraft.lab.tasks.store import stored_problems

SHAPE = ReasonerConfig(hidden_size=32, layers=1, heads=2, intermediate_size=32, max_positions=512)
TASK = get_task("chain_sum")


@pytest.fixture(scope="module")
def policy():
    tokenizer = build_tokenizer(SHAPE.max_positions)
    return build_reasoner(SHAPE, tokenizer), tokenizer


@pytest.fixture(scope="module")
def problems():
    return TASK.problems("eval", 12)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (4, 4, 1), (7, 3, 7), (8, 1, 8)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, c, k):
    right = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_needs_k_samples():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"pass@{k} needs"):
            pass_at_k(4, 1, k)


def test_estimates_over_problems():
    seen = Evaluation(None, torch.tensor([0, 1, 2, 2]), samples=2, length=1.0, finished=1.0)
    assert seen.pass_at(1).value == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert seen.pass_at(2).value == pytest.approx(3 / 4)
    assert seen.pass_at(2).stderr == pytest.approx(torch.tensor([0.0, 1, 1, 1]).std().item() / 2)


def counted(*problems, samples=4):
    """An evaluation of problems given as result -> (count, right)."""
    correct = [sum(n for n, right in found.values() if right) for found in problems]
    return Evaluation(None, torch.tensor(correct), samples, 1.0, 1.0, problems)


def test_cover_and_distinct_results():
    seen = counted(
        {"7": (1, True), "1": (3, False)},
        {"7": (2, True), "8": (1, True), "": (1, False)},
        {"3": (4, False)},
    )
    assert [seen.cover_at(share).value for share in (0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [2 / 3, 1 / 3, 1 / 3, 0]
    )
    assert seen.distinct().value == pytest.approx((1 + 2 + 0) / 3)
    assert seen.distinct().stderr == pytest.approx(1 / 3**0.5)


def test_majority_is_that_of_random_subsets():
    found = {"7": (3, True), "1": (2, False), "2": (1, False)}
    texts = [name for name, (count, _) in found.items() for _ in range(count)]
    for k in (1, 2, 3, 4, 6):
        expected = []
        for subset in itertools.combinations(texts, k):
            most = max(map(subset.count, subset))
            leads = {text for text in subset if subset.count(text) == most}
            expected.append(("7" in leads) / len(leads))
        [by_hand] = [sum(expected) / len(expected)]
        seen = counted(found, samples=6).majority_at(k, draws=20_000)
        assert seen.value == pytest.approx(by_hand, abs=0.015)
    with pytest.raises(ValueError, match="majority@7 needs at least 7 samples"):
        counted(found, samples=6).majority_at(7)


def test_the_metrics_of_an_evaluation():
    found = [{"1": (9, True), "2": (1, False)}, {"3": (2, True), "4": (1, True), "5": (7, False)}]
    metrics = counted(*found, samples=10).metrics()
    assert metrics["eval/pass@1"] == pytest.approx(0.6)
    assert metrics["eval/pass@8"] == metrics["eval/pass@10"] == 1.0
    assert metrics["eval/pass@1_stderr"] == pytest.approx(0.3)
    assert (metrics["eval/cover@0.1"], metrics["eval/cover@0.5"]) == (1.0, 0.5)
    assert (metrics["eval/majority"], metrics["eval/distinct"]) == (0.5, 1.5)
    curve = [counted(*found, samples=10).pass_at(k).value for k in range(1, 11)]
    assert metrics["eval/sharpening"] == sharpening(curve)
    one = counted({"1": (1, True)}, samples=1).metrics()
    assert set(one) == {"eval/pass@1", "eval/pass@1_stderr"}


def test_the_sharpening_tax_by_hand():
    before = Evaluation(None, torch.tensor([1, 1, 2, 0]), 4, 1.0, 1.0)
    after = Evaluation(None, torch.tensor([4, 0, 4, 0]), 4, 1.0, 1.0)

    def share(seen):
        curve = [seen.pass_at(k).value for k in range(1, 5)]
        return sum(curve[3] - value for value in curve[:3]) / (3 * (1 - curve[0]))

    tax, low, high = sharpening_tax(before, after, most=4)
    assert tax == pytest.approx(share(before) - share(after))
    assert share(after) == 0
    assert low <= tax <= high
    assert low < high
    assert sharpening_tax(before, before, most=4) == (0, 0, 0)
    assert sharpening([1.0, 1.0]) == 0
    with pytest.raises(ValueError, match="4 problems before and 1 after"):
        sharpening_tax(before, Evaluation(None, torch.tensor([1]), 4, 1.0, 1.0), most=4)
    for most in (1, 5):
        with pytest.raises(ValueError, match=f"most={most}; use at least 2"):
            sharpening_tax(before, after, most=most)


def test_results_are_counted_by_problem():
    tokenizer, task = build_tokenizer(), get_task("permutation_words")
    model = build_reasoner(SHAPE, tokenizer)
    [first, second] = task.problems("eval", 2)

    class Told(type(task)):
        texts = iter([f">1={first.answer}", f"={first.answer}", "=x", "", "no", "no", "no", "4=4"])

        def verify(self, problem, completion):
            self.said.append(next(self.texts))
            return super().verify(problem, self.said[-1])

        def result(self, completion):
            return super().result(self.said.pop(0))

    told = Told()
    told.said = []
    seen = evaluate(model, tokenizer, told, [first, second], samples=4, max_new_tokens=3)
    right = second.answer == "4"
    assert seen.results == (
        {first.answer: (2, True), "x": (1, False), "": (1, False)},
        {"no": (3, False), "4": (1, right)},
    )
    assert seen.correct.tolist() == [2, float(right)]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_entropy_is_that_of_the_sampled_distributions(policy, problems, temperature):
    model, tokenizer = policy
    arguments = {"max_new_tokens": 7, "temperature": temperature}
    seen = evaluate(model, tokenizer, TASK, problems, seed=3, **arguments)
    prompts = [problem.prompt for problem in problems]
    ids, attention, mask = sample(model, tokenizer, prompts, seed=3, **arguments)
    nats, tokens = 0.0, 0
    for row in range(len(ids)):
        real = ids[row][torch.cat([attention[row].bool(), mask[row]])]
        count = int(mask[row].sum())
        with torch.no_grad():
            logits = model(real[None]).logits[0, -count - 1 : -1].double() / temperature
        nats += float(torch.distributions.Categorical(logits=logits).entropy().sum())
        tokens += count
    assert seen.entropy.value == pytest.approx(nats / tokens, rel=1e-5)
    assert seen.length == pytest.approx(tokens / len(ids))


def test_nothing_is_disturbed_and_the_same_seed_repeats(policy, problems):
    model, tokenizer = policy
    model.train()
    state, defaults = torch.get_rng_state(), model.generation_config
    first = evaluate(model, tokenizer, TASK, problems, samples=2, max_new_tokens=5, seed=1)
    again = evaluate(model, tokenizer, TASK, problems, samples=2, max_new_tokens=5, seed=1)
    other = evaluate(model, tokenizer, TASK, problems, samples=2, max_new_tokens=5, seed=2)
    assert first.entropy == again.entropy != other.entropy
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.generation_config is defaults
    model.eval()


def test_the_models_generation_defaults_are_left_out_as_in_training(policy, problems):
    model, tokenizer = policy
    before = model.generation_config
    plain = evaluate(model, tokenizer, TASK, problems, max_new_tokens=6)
    try:
        model.generation_config = GenerationConfig(repetition_penalty=50.0, top_k=1)
        same = evaluate(model, tokenizer, TASK, problems, max_new_tokens=6)
    finally:
        model.generation_config = before
    assert plain.entropy == same.entropy
    greedy = evaluate(model, tokenizer, TASK, problems, max_new_tokens=6, sampling={"top_k": 1})
    assert greedy.entropy != plain.entropy


def test_batches_cover_every_problem_once(policy, problems):
    model, tokenizer = policy
    seen = evaluate(
        model, tokenizer, TASK, problems, samples=3, max_new_tokens=4, batch_size=5, seed=None
    )
    assert seen.correct.shape == (len(problems),)
    whole = evaluate(model, tokenizer, TASK, problems, samples=3, max_new_tokens=4, seed=None)
    assert seen.entropy.value == pytest.approx(whole.entropy.value, rel=1e-5)


def test_a_rendered_chat_is_not_given_a_second_start_token(policy, problems):
    model, _ = policy
    tokenizer = build_tokenizer(SHAPE.max_positions)
    start = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.eos_token_id)]
    )
    tokenizer.chat_template = start + "{% for m in messages %}{{ m.content }}{% endfor %}"
    prompt = text_prompt(problems[0], tokenizer, chat=True)
    wanted = tokenizer.apply_chat_template(trainer_prompt(problems[0], True), tokenize=True)
    wanted = wanted["input_ids"] if not isinstance(wanted, list) else wanted
    for special in (False, True):
        ids, *_ = sample(model, tokenizer, [prompt], 1, special_tokens=special)
        assert (ids[0, :-1].tolist() == wanted) is not special


def test_prompts_and_completions_of_both_kinds(problems):
    tokenizer = build_tokenizer()
    assert not speaks_chat(tokenizer)
    with pytest.raises(ValueError, match="chat template"):
        speaks_chat(tokenizer, chat=True)
    assert trainer_prompt(problems[0], chat=False) == problems[0].prompt
    assert completion_text("3+4") == "3+4"
    assert completion_text([{"role": "assistant", "content": "3"}, {"content": None}]) == "3"


def test_stored_problems_are_the_tasks_own(tmp_path):
    made = stored_problems(TASK, "eval", 9, cache_dir=tmp_path)
    assert made == TASK.problems("eval", 9)
    [file] = (tmp_path / "problems").iterdir()
    file.write_text(file.read_text().replace(made[0].prompt, "from the cache"))
    assert stored_problems(TASK, "eval", 9, cache_dir=tmp_path)[0].prompt == "from the cache"
    assert stored_problems(TASK, "eval", 8, cache_dir=tmp_path) == made[:8]


def test_a_task_with_fewer_problems_than_asked_for_gives_all_it_has(tmp_path):
    tiny = get_task("chain_sum", max_terms=2, min_terms=2)
    lists = []
    for _ in range(2):  # the second time from the disk
        with pytest.warns(UserWarning, match=r"has \d+ eval problems, not the 500 asked for"):
            lists.append(stored_problems(tiny, "eval", 500, cache_dir=tmp_path, fewer=True))
    assert lists[0] == lists[1]
    assert 1 < len(lists[0]) < 500
    with pytest.raises(ValueError, match="yields only"):
        stored_problems(tiny, "eval", 500, cache_dir=tmp_path)
