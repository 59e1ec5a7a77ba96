"""The core stays light: importing it loads torch and no trainer, and costs next to nothing more."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

ABSENT = ("trl", "transformers", "matplotlib", "datasets", "accelerate", "scipy", "yaml")


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_import_loads_no_trainer_and_leaves_the_global_generator_alone():
    loaded = _python(
        "import sys, torch\n"
        "torch.manual_seed(7); before = torch.get_rng_state()\n"
        "import entrocraft\n"
        f"print([name for name in {ABSENT!r} if name in sys.modules], end=' ')\n"
        "print(torch.equal(before, torch.get_rng_state()))"
    )
    assert loaded == "[] True"


def test_import_costs_less_than_three_tenths_of_a_second_beyond_torch():
    # timed inside one process after torch is there, so the noise of importing torch is not in it
    code = (
        "import time, torch\n"
        "before = time.perf_counter()\n"
        "import entrocraft\n"
        "print(time.perf_counter() - before)"
    )
    assert any(float(_python(code)) < 0.3 for _ in range(5))


def test_public_names_resolve():
    import entrocraft

    for name in entrocraft.__all__:
        assert getattr(entrocraft, name) is not None


@pytest.mark.skipif(find_spec("verl") is not None, reason="verl is installed")
@pytest.mark.parametrize("code", ["import entrocraft.verl", None])
def test_without_verl_its_adapter_says_what_to_install(code):
    arguments = ["-m", "entrocraft.verl"] if code is None else ["-c", code]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "entrocraft.verl needs verl" in done.stderr
    assert "install entrocraft with its extra [verl]" in done.stderr
