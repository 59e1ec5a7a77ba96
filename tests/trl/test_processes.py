"""Two processes take one decision, on all rollouts, and each trains on its own part."""

import json
import subprocess
import sys

import pytest

LOCAL = 10  # 2 micro-batches of 5
ROWS = 2 * LOCAL


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each rank wrote down, by kind of trainer."""
    path = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, "--nproc_per_node", "2", "-m", "tests.trl.runs", "ranks", str(path)],
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        kind: [json.loads((path / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
        for kind in ("grpo", "rloo", "tokens", "stopped", "extra_pass", "drop_rejected", "steered")
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_two_processes(seen, kind):
    first, second = seen[kind]
    assert first["processes"] == second["processes"] == 2
    for name in ("weights", "metrics", "advantages", "groups", "rewards"):
        assert first[name] == second[name], name
    # the same update on both ranks
    assert first["model"] == second["model"]
    assert len(first["weights"]) == 4
    for step in range(4):
        assert len(first["weights"][step]) == ROWS
        # GRPO decides in its loss, and keeps a run's first batch as it is
        assert (0 in first["weights"][step]) == (step > 0 or kind == "rloo")
        # groups of 4 in TRL's global order; the third spans both ranks
        assert first["groups"][step] == [row // 4 for row in range(ROWS)]
        before = first["before"][step] + second["before"][step]
        decided = [a * w for a, w in zip(before, first["weights"][step], strict=True)]
        assert first["advantages"][step] == pytest.approx(decided)
        assert first["local"][step] == pytest.approx(decided[:LOCAL])
        assert second["local"][step] == pytest.approx(decided[LOCAL:])
        # rewards are those of the rows: within a group, advantages are a line over rewards
        for group in range(5):
            rows = range(4 * group, 4 * group + 4)
            order = sorted(rows, key=lambda row: first["rewards"][step][row])
            values = [before[row] for row in order]
            assert values == sorted(values)
        (nats, tokens), (more_nats, more_tokens) = first["entropy"][step], second["entropy"][step]
        assert nats / tokens != pytest.approx(more_nats / more_tokens, rel=1e-6)
        assert first["metrics"][step]["entropy/measured"] == pytest.approx(
            (nats + more_nats) / (tokens + more_tokens)
        )
        assert first["rows"][step]["entropy/measured"] == pytest.approx(
            first["metrics"][step]["entropy/measured"]
        )


@pytest.mark.slow
def test_rollouts_that_one_process_cannot_score_stop_both_before_the_step(seen):
    first, second = seen["stopped"]
    assert "rollouts of rank 1 are invalid" in first["error"]
    assert "logprobs[1, 0] is nan inside the mask" in second["error"]
    for rank in (first, second):
        assert rank["passes"] == [5] * 6, "both went through the third step's micro-batches"
        assert rank["step"] == rank["state"]["decisions"] == 2
    assert first["state"] == second["state"]
    assert first["model"] == second["model"]


@pytest.mark.slow
def test_processes_that_drop_rollouts_stay_in_step(seen):
    whole, dropped = seen["extra_pass"], seen["drop_rejected"]
    assert whole[0]["model"] == whole[1]["model"]
    assert dropped[0]["model"] == dropped[1]["model"]
    assert dropped[0]["model"] == pytest.approx(whole[0]["model"], rel=1e-6)
    assert dropped[0]["rejected"] > 0
    assert [set(rank["passes"]) for rank in whole] == [{8}] * 2
    # as many rollouts on both, micro-batch by micro-batch: the collectives of TRL's log need it
    assert dropped[0]["passes"] == dropped[1]["passes"]
    assert len(dropped[0]["passes"]) == len(whole[0]["passes"])
    assert sum(dropped[0]["passes"]) < sum(whole[0]["passes"])


@pytest.mark.slow
def test_a_method_that_weighs_tokens_sees_all_processes(seen):
    first, second = seen["tokens"]
    assert first["model"] == second["model"]
    assert first["state"] == second["state"]
    assert first["alphas"] == second["alphas"]
    assert len(first["alphas"]) == 8  # 4 optimizer steps of 2 micro-batches
    summed = 0.0
    pairs = zip(first["entropies"], second["entropies"], strict=True)
    for (mine, theirs), alpha in zip(pairs, first["alphas"], strict=True):
        assert mine != theirs
        error = (mine[0] + theirs[0]) / (mine[1] + theirs[1]) - 2.5
        assert alpha == pytest.approx(max(-1.0, min(1.0, 0.4 * error + 0.3 * summed)), abs=1e-6)
        summed += 0.5 * error


@pytest.mark.slow
def test_processes_obey_the_commands_that_the_first_one_reads(seen):
    first, second = seen["steered"]
    assert first["targets"] == second["targets"] == [2.5, 2.25, 2.25, 2.25]
    assert first["state"] == second["state"]
    assert first["state"]["schedule"]["now"] == "constant(2.25)"
    assert first["step"] == second["step"] == 4, "stopped after the batch in which it was told to"
    assert first["model"] == second["model"]
    assert (first["files"], second["files"]) == (["steer.json", "steered.json"], [])
