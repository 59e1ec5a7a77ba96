"""The one reader of metrics.jsonl."""

import json
import subprocess
import sys
import warnings

import pytest

from entrocraft import EntropyControlWarning
from entrocraft.lab.records import RunError, read_records


def write(path, *lines):
    file = path / "metrics.jsonl"
    file.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return file


@pytest.mark.parametrize("strict", [False, True])
def test_whole_records_by_step(tmp_path, strict):
    assert read_records(tmp_path / "none.jsonl", strict) == []
    file = write(
        tmp_path,
        {"step": 2, "reward": 1, "note": "text", "kl": None},
        "\0\0\n",
        {"step": 1.0, "entropy/saturated": True},
        '{"step": 3, "rew',
    )
    assert read_records(file, strict) == [
        {"step": 1, "entropy/saturated": 1.0},
        {"step": 2, "reward": 1.0},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 1}\n{"step": 2, \n{"step": 3}\n', ["line 2", "delete"]),
        ('{"step": 1}\n[1, 2]\n', ["line 2", '"step"']),
        ('{"reward": 1}\n', ["line 1", '"step"']),
        ('{"step": true}\n', ["line 1", '"step"']),
        ('{"step": 1.5}\n', ["line 1", '"step"']),
        ('{"step": 1e300}\n', ["line 1", '"step"']),
        ('{"step": -1}\n', ["line 1", '"step"']),
        ('{"step": NaN}\n', ["line 1", '"step"']),
        ('{"step": Infinity}\n', ["line 1", '"step"']),
        ('{"step": 1, "reward": "high"}\n', ["line 1", "reward", "number"]),
        ('{"step": 1, "reward": 1%s}\n' % ("0" * 400), ["line 1", "too large"]),
        ('{"step": 1, "reward": 1%s}\n' % ("0" * 5000), ["line 1", "delete"]),
    ],
)
def test_a_bad_line_is_left_out_or_named(tmp_path, text, words):
    file = write(tmp_path, text)
    assert all(set(record) == {"step"} for record in read_records(file))
    with pytest.raises(RunError) as error:
        read_records(file, strict=True)
    for word in ["metrics.jsonl", *words]:
        assert word in str(error.value)


def test_a_step_logged_again_voids_what_followed(tmp_path):
    before = [{"step": s, "reward": 0.0} for s in (1, 2, 3, 4)]
    file = write(tmp_path, *before, {"step": 3, "reward": 1.0})
    assert [(r["step"], r["reward"]) for r in read_records(file)] == [(1, 0), (2, 0), (3, 1)]


def test_one_step_in_two_parts_is_merged(tmp_path):
    file = write(
        tmp_path,
        {"step": 1, "seconds": 1, "reward": 0.5},
        {"step": 2, "reward": 0.6},
        {"step": 1, "seconds": 2, "eval/pass@1": 0.1},
    )
    assert read_records(file) == [
        {"step": 1, "seconds": 2.0, "reward": 0.5, "eval/pass@1": 0.1},
        {"step": 2, "reward": 0.6},
    ]


def test_keys_of_the_first_version_get_their_present_names(tmp_path):
    old = {
        "entropy/authority_up": 1,
        "entropy/authority_down": 2,
        "entropy/realised_change": 3,
        "entropy/realised_change_stderr": 4,
        "entropy/spare_used": 5,
    }
    file = write(tmp_path, {"step": 0} | old, {"step": 1} | old)
    with pytest.warns(EntropyControlWarning, match="authority_up is now .*reachable_up") as caught:
        records = read_records(file)
    assert len(caught) == 1
    assert records[1] == {
        "step": 1,
        "entropy/reachable_up": 1,
        "entropy/reachable_down": 2,
        "entropy/post_update_change": 3,
        "entropy/post_update_change_stderr": 4,
        "entropy/constant_reward_used": 5,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_records(write(tmp_path, records[0]))


def test_the_reader_is_standard_library_alone():
    code = (
        "import sys, importlib.util as u; "
        "s = u.spec_from_file_location('r', sys.argv[1]); m = u.module_from_spec(s); "
        "s.loader.exec_module(m); assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    file = sys.modules["entrocraft.lab.records"].__file__
    subprocess.run([sys.executable, "-c", code, file], check=True)
