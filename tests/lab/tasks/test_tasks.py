"""Tasks: verifiers against brute force, disjoint splits, determinism, errors that teach."""

import random
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrocraft.lab.tasks import SPLITS, TASKS, Problem, extract_answer, get_task, split_of
from entrocraft.lab.tasks.countdown import bare_expression, random_chain, solution_chains
from entrocraft.lab.tasks.expressions import evaluate, evaluate_chain, normalize
from entrocraft.lab.tasks.permutation_words import permutations

OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
SMALL = {
    "countdown": {},
    "chain_sum": {},
    "permutation_words": {},
    "maze": {},
}


@st.composite
def expressions(draw, depth=3):
    """(text, value or None, numbers), fully bracketed; 30**8 stays within the magnitude."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 30))
        return str(number), Fraction(number), [number]
    left, a, used_left = draw(expressions(depth=depth - 1))
    right, b, used_right = draw(expressions(depth=depth - 1))
    operator = draw(st.sampled_from("+-*/"))
    text = f"({left} {operator} {right})"
    if a is None or b is None or (operator == "/" and b == 0):
        return text, None, used_left + used_right
    return text, OPERATORS[operator](a, b), used_left + used_right


@st.composite
def flat_expressions(draw):
    """(text, value or None) without brackets; the value comes from two passes of folding."""
    numbers = draw(st.lists(st.integers(0, 50), min_size=1, max_size=6))
    operators = draw(
        st.lists(st.sampled_from("+-*/"), min_size=len(numbers) - 1, max_size=len(numbers) - 1)
    )
    text = str(numbers[0])
    terms = [(1, Fraction(numbers[0]))]
    for operator, number in zip(operators, numbers[1:], strict=True):
        text += operator + str(number)
        if operator in "+-":
            terms.append((1 if operator == "+" else -1, Fraction(number)))
        elif operator == "/" and number == 0:
            return " ".join(text), None
        else:
            sign, value = terms[-1]
            terms[-1] = (sign, OPERATORS[operator](value, Fraction(number)))
    return text, sum((sign * value for sign, value in terms), Fraction(0))


def countdown_problem(numbers, target):
    return Problem("", "", "", "", {"numbers": list(numbers), "target": target})


@given(expressions())
def test_evaluate_matches_construction(expression):
    text, value, numbers = expression
    result = evaluate(text)
    if len(text) > 256 or value is None:
        assert result is None
    else:
        assert result is not None
        assert result.value == value
        assert list(result.numbers) == numbers


@given(flat_expressions())
def test_evaluate_precedence(expression):
    text, value = expression
    if value is None:
        text = text.replace(" ", "")
        assert evaluate(text) is None
    else:
        assert evaluate(text).value == value


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    st.integers(0, 2**32),
    st.integers(-3, 3),
)
def test_chain_is_right_iff_every_result_is(numbers, seed, error):
    rng = random.Random(seed)
    chain = random_chain(tuple(numbers), "+-*/", 999, rng)
    assert chain is not None
    result = evaluate_chain(chain)
    assert sorted(result.numbers) == sorted(numbers)
    task = get_task("countdown")
    assert task.verify(countdown_problem(numbers, int(result.value)), chain) == 1.0
    # Change one stated result: the chain is right only where nothing changed.
    segments = chain.split("=")
    index = rng.randrange(1, len(segments))
    digits = "".join(c for c in segments[index][:3] if c.isdigit())
    head = segments[index][: len(digits)] if segments[index][: len(digits)].isdigit() else None
    if head is None:
        head = next(
            segments[index][:n] for n in range(len(digits), 0, -1) if segments[index][:n].isdigit()
        )
    segments[index] = str(int(head) + error) + segments[index][len(head) :]
    changed = "=".join(segments)
    assert (evaluate_chain(changed) is not None) == (error == 0)


def brute_force_chains(numbers, target):
    """All left-to-right chains by permutation, in plain sight."""
    from itertools import permutations, product

    found = set()
    for order in permutations(numbers):
        for operators in product("+-*/", repeat=len(numbers) - 1):
            value, text, legal = Fraction(order[0]), str(order[0]), True
            for operator, number in zip(operators, order[1:], strict=True):
                value = OPERATORS[operator](value, Fraction(number))
                legal = value.denominator == 1 and 0 <= value <= 99
                if not legal:
                    break
                text += f"{operator}{number}={value}"
            if legal and value == target:
                found.add(text)
    return tuple(sorted(found))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 40))
def test_solution_chains_match_brute_force(numbers, target):
    numbers = tuple(sorted(numbers))
    assert solution_chains(numbers, target, "+-*/", 99) == brute_force_chains(numbers, target)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(0, 2**32))
def test_bare_expression_has_the_value_of_its_chain(numbers, seed):
    chain = random_chain(tuple(numbers), "+-*/", 999, random.Random(seed))
    assert chain is not None
    bare = bare_expression(chain)
    assert "=" not in bare
    assert evaluate(bare) == evaluate_chain(chain)


@pytest.mark.parametrize("worked", [False, True])
def test_countdown_demonstrations_come_in_both_forms(worked):
    task = get_task("countdown", worked=worked)
    problem = countdown_problem((3, 7, 8), 29)
    rng = random.Random(0)
    completions = {task.demonstration(problem, rng) for _ in range(50)}
    assert len(completions) == 2
    assert all(("=" in completion) == worked for completion in completions)
    assert all(task.verify(problem, completion) == 1.0 for completion in completions)


@pytest.mark.parametrize("name", sorted(TASKS))
@given(completion=st.one_of(st.text(), st.text("0123456789+-*/()=. <>answer\\{}boxed×\n_e")))
@settings(max_examples=100)
def test_verify_accepts_any_text(name, completion):
    task = get_task(name)
    problem = Problem(
        "",
        "",
        "",
        "",
        {
            "numbers": [3, 7],
            "target": 21,
            "terms": [3],
            "total": 3,
            "states": [7],
            "grid": "S.#/..G/#..",
        },
    )
    assert 0.0 <= task.verify(problem, completion) <= 1.0


HOSTILE = [
    "9**9**9",
    "9" * 10**6,
    "<answer>" * 12_000,
    "\\boxed{" * 14_000,
    "(" * 100 + "1" + ")" * 100,
    "(" * 10**5,
    "-" * 200 + "1",
    "1/0",
    "1/0=1",
    "1/(3-3)",
    "999999999999*999999999999",
    "٣*٧",
    "٣*٧=٢١",
    "²",
    "3*7=21" + "+0=21" * 100_000,
    "__import__('os').abort()",
    "<answer>__import__('os').abort()</answer>",
    "().__class__",
    "3_0",
    "0x15",
    "1e9999",
    "1j",
    "3//1",
    "7<<3",
    "lambda: 21",
    "True",
    "nan",
    "",
    "\x00",
    "=",
    "==",
    "21=21",
    "=21",
]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_verify_is_bounded(name):
    task = get_task(name)
    metadata = {"numbers": [3, 7], "target": 21, "terms": [], "total": 20, "states": [2]}
    metadata["grid"] = "S#/#G"
    problem = Problem("", "", "", "", metadata)
    start = time.perf_counter()
    for completion in HOSTILE:
        assert task.verify(problem, completion) == 0.0, completion[:40]
    assert task.verify(problem, None) == 0.0
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("3*7=21+8=29-4=25", 1.0),
        (" 3*7 = 21 + 8 = 29 - 4 = 25 ", 1.0),
        ("3*7+8-4", 1.0),
        ("3*7+8-4=25", 1.0),
        ("(7*3)-4+8", 1.0),
        ("reasoning\n<answer>3*7 + 8 - 4</answer> done", 1.0),
        ("<answer>1</answer> no: <answer>3*7+8-4</answer>", 1.0),
        (r"so \boxed{3 \times 7 + 8 - 4}.", 1.0),
        ("<think><answer>1</answer></think>3×7+8−4", 1.0),
        ("3*7=21+8=29-4=26", 0.0),
        ("3*7=22+8=29-4=25", 0.0),
        ("3*7=21+8=29", 0.0),
        ("3*7=21+4=25", 0.0),
        ("3*7=21+8=29-4=25=25", 0.0),
        ("21+8-4", 0.0),
        ("3*7+8-4+3-3", 0.0),
        ("25", 0.0),
        ("<answer>25</answer>", 0.0),
    ],
)
def test_countdown_answers(completion, expected):
    problem = countdown_problem((3, 7, 8, 4), 25)
    assert get_task("countdown").verify(problem, completion) == expected


def test_chain_sum_answers():
    task = get_task("chain_sum")
    problem = Problem("3-5+1", "3-5+1:", "", "-1", {"terms": [3, -5, 1], "total": -1})
    for right in ("1+3=4-5=-1", "-1", "<answer>-1</answer>", r"\boxed{-1}"):
        assert task.verify(problem, right) == 1.0
    for wrong in ("1", "3-5+1", "-1.5", "- 1", "1+3=4-5=1"):
        assert task.verify(problem, wrong) == 0.0


def test_permutation_words_by_hand():
    task = get_task("permutation_words", lengths=[1, 3])
    tables = permutations(10, 0)
    for problem in task.problems("train", 30):
        digit = int(problem.key[0])
        for letter in problem.key[1:]:
            digit = tables[letter][digit]
        assert problem.answer == str(digit)
        assert len(problem.key) in (2, 4)
    assert {len(set(table)) for table in tables.values()} == {10}
    other = get_task("permutation_words", tables_seed=1)
    assert permutations(10, 1) != tables
    assert [p.key for p in other.problems("train", 5)] == [
        p.key for p in get_task("permutation_words").problems("train", 5)
    ]


def test_permutation_words_answers():
    task = get_task("permutation_words")
    problem = Problem("3bca", "3bca:", "", "7", {"states": [5, 1, 7]})
    for right in ("=7", ">5>1=7", ">0>0=7", "7", "<answer>7</answer>"):
        assert task.verify(problem, right) == 1.0
    for wrong in (">5>1>7", "=1", "77", "=", "x=7", "=7=", ">5>1=7>"):
        assert task.verify(problem, wrong) == 0.0


def test_permutation_words_are_worked_as_often_as_asked():
    rng = random.Random(0)
    [problem] = get_task("permutation_words").problems("train", 1)
    states = problem.metadata["states"]
    for share in (0.0, 0.25, 1.0):
        task = get_task("permutation_words", worked=share)
        made = [task.demonstration(problem, rng) for _ in range(400)]
        assert set(made) <= {
            f"={states[-1]}",
            "".join(f">{s}" for s in states[:-1]) + f"={states[-1]}",
        }
        assert sum(text[0] == ">" for text in made) / 400 == pytest.approx(share, abs=0.06)


def test_maze_answers():
    task = get_task("maze", longest=8)
    problem = Problem("", "", "", "", {"grid": "S.#/..G/#.."})
    for right in ("DRR", "RDR", "D R R", "RLDRR", "<answer>DRDUR</answer>"):
        assert task.verify(problem, right) == 1.0, right
    for wrong in ("DR", "RRD", "LDRR", "DRRR", "drr", "RLRLRLDRR", "DRRU", "DRRUD"):
        assert task.verify(problem, wrong) == 0.0, wrong


def test_maze_distances_are_those_of_all_paths():
    task = get_task("maze", size=4, max_distance=6, longest=12)
    for problem in task.problems("train", 10):
        edge, shortest = [""], None
        while shortest is None:
            edge = [path + move for path in edge for move in "UDLR"]
            right = [path for path in edge if task.score(problem, path)]
            shortest = len(edge[0]) if right else None
        assert len(problem.answer) == shortest
        assert task.min_distance <= shortest <= task.max_distance


def test_extract_answer_prefers_marked_answers():
    assert extract_answer("a\nb\n\n") == "b"
    assert extract_answer("\\boxed{\\frac{1}{2}} x") == "\\frac{1}{2}"
    assert extract_answer("<answer>4</answer>\n5") == "4"
    assert extract_answer("<answer>4</answer> and <answer>5") == "4"
    assert normalize("a ÷ b") == "a / b"


@pytest.fixture(scope="module")
def problems():
    return {
        (name, split): get_task(name, **options).problems(split, 40, seed=1)
        for name, options in SMALL.items()
        for split in SPLITS
    }


@pytest.mark.parametrize("name", sorted(TASKS))
def test_splits_are_disjoint_and_distinct(problems, name):
    keys = {split: [p.key for p in problems[name, split]] for split in SPLITS}
    for split in SPLITS:
        assert len(set(keys[split])) == 40
        assert all(split_of(name, key) == split for key in keys[split])
    # Another seed and other options leave a problem in its split.
    other = get_task(name).problems("train", 40, seed=2)
    assert {p.key for p in other}.isdisjoint(keys["probe"] + keys["eval"])
    assert [p.key for p in other] != keys["train"]


def test_split_is_stable():
    # These may never change: published models were trained on one side of them.
    assert split_of("countdown", "3,4,7,8=25") == "train"
    assert split_of("countdown", "2,3,4=20") == "probe"
    assert split_of("countdown", "2,3,4=14") == "eval"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_problems_are_deterministic_prefixes(problems, name):
    assert get_task(name).problems("train", 10, seed=1) == problems[name, "train"][:10]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_references_and_demonstrations_verify(problems, name):
    task = get_task(name)
    rng = random.Random(0)
    for split in SPLITS:
        for problem in problems[name, split]:
            assert task.verify(problem, problem.answer) == 1.0
            assert task.verify(problem, f"hm\n<answer>{problem.answer}</answer>") == 1.0
            assert task.verify(problem, task.demonstration(problem, rng)) == 1.0
            assert problem.prompt.endswith(":")
            assert "<answer>" in problem.question
    train = problems[name, "train"]
    wrong = [task.verify(p, task.demonstration(p, rng, skill=0.0)) for p in train]
    assert sum(wrong) < 0.5 * len(wrong)
    once, again = (task.demonstration(train[0], random.Random(3), 0.5) for _ in range(2))
    assert once == again


def test_making_problems_leaves_the_global_random_state():
    # In a process of its own: the library disturbs the state when it is first imported.
    code = (
        "import random; random.seed(5); before = random.getstate();"
        "from entrocraft.lab.tasks import get_task; get_task('chain_sum').problems('eval', 3);"
        "assert before == random.getstate()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_same_numbers_in_another_order_are_the_same_problem():
    task = get_task("countdown")
    first, second = (
        task.candidate(
            {"question": "", "answer": "1+2*3*4", "metadata": {"numbers": numbers, "target": 25}}
        )
        for numbers in ([1, 2, 3, 4], [4, 3, 2, 1])
    )
    # 1+24 is reached from the left as well: 2*3=6*4=24+1=25.
    assert first.key == second.key
    assert first.prompt != second.prompt


def test_library_answers_that_do_not_hold_are_dropped():
    entry = {"question": "", "answer": "7/2*3", "metadata": {"numbers": [7, 2, 3], "target": 9}}
    assert get_task("countdown").candidate(entry) is None


def test_errors_name_value_and_remedy():
    with pytest.raises(ValueError, match=r"'sudoku'.*chain_sum, countdown"):
        get_task("sudoku")
    with pytest.raises(ValueError, match=r"'digits'.*min_numbers"):
        get_task("countdown", digits=3)
    with pytest.raises(ValueError, match="min_value=5, max_value=3"):
        get_task("countdown", min_value=5, max_value=3)
    with pytest.raises(ValueError, match="operators='%'"):
        get_task("countdown", operators="%")
    with pytest.raises(ValueError, match="min_terms=1"):
        get_task("chain_sum", min_terms=1)
    for name, value in (("size", 13), ("walls", 1.0), ("longest", 3)):
        with pytest.raises(ValueError, match=f"{name}="):
            get_task("maze", **{name: value})
    for name, value in (("lengths", []), ("lengths", [13]), ("letters", 27), ("worked", 1.5)):
        with pytest.raises(ValueError, match=f"{name}="):
            get_task("permutation_words", **{name: value})
    with pytest.raises(ValueError, match=r"'test'.*train, probe, eval"):
        get_task("countdown").problems("test", 1)
    with pytest.raises(ValueError, match="size=0"):
        get_task("countdown").problems("train", 0)
    tiny = get_task("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    with pytest.raises(ValueError, match=r"yields only \d+ distinct train problems of the 1000"):
        tiny.problems("train", 1000)
    there = tiny.problems("train", 1000, fewer=True)
    assert 0 < len(there) < 1000
    assert tiny.problems("train", len(there)) == there
