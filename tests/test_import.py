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


def test_the_help_text_needs_no_torch():
    loaded = _python(
        "import sys\n"
        "from entrocraft.__main__ import main\n"
        "main(['--help'])\n"
        "print([name for name in ('torch', 'numpy', 'jsonargparse') if name in sys.modules])"
    )
    assert loaded.splitlines()[-1] == "[]"


def test_a_command_without_its_extra_names_it():
    # an entry of None makes an import fail
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['jsonargparse'] = None\n"
            "from entrocraft.__main__ import main; sys.exit(main(['train']))",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install 'entrocraft[lab]'")


def test_trl_missing_is_named():
    code = "import sys; sys.modules['trl'] = None; import entrocraft.trl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'entrocraft[trl]'" in done.stderr


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
    assert "pip install 'entrocraft[verl]'" in done.stderr
