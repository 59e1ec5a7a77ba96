"""The built wheel: complete, and usable where torch is the only other package."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
DECIDE = """
import json, sys, torch
from entrocraft import EntropyController, RolloutBatch, __version__

torch.manual_seed(0)
batch = RolloutBatch(
    step=0,
    advantages=torch.tensor([1.0, -1.0] * 4),
    mask=torch.ones(8, 5, dtype=torch.bool),
    logprobs=-torch.rand(8, 5),
    entropies=torch.rand(8, 5),
)
decision = EntropyController("linear(0.6, 0.3, 300)").decide(batch)
found = sorted({name.partition(".")[0] for name in sys.modules} & {"trl", "transformers", "yaml"})
print(json.dumps([__version__, list(decision.weights.shape), found]))
"""


def run(*command, **options):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, **options
    )


def must(*command, **options):
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the sources; built from a copy, so that no earlier build/ gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "entrocraft", source / "entrocraft", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    must(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source)
    [built] = folder.glob("entrocraft-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel):
    files = {path for path in (ROOT / "entrocraft").rglob("*") if path.is_file()}
    wanted = {p.relative_to(ROOT).as_posix() for p in files if "__pycache__" not in p.parts}
    assert wanted <= set(ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_wheel_needs_torch_alone(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    command = tmp_path / "env" / "bin" / "entrocraft"
    pip = (python, "-m", "pip", "--quiet")
    must(*pip, "install", "--constraint", ROOT / "constraints.txt", "torch")
    must(*pip, "install", "--no-index", wheel)  # with no index nothing else can come along
    must(*pip, "check")

    version, shape, trainers = json.loads(must(python, "-c", DECIDE, cwd=tmp_path))
    assert wheel.name.startswith(f"entrocraft-{version}-")
    assert shape == [8]
    assert trainers == []
    assert must(command, "--help", cwd=tmp_path).startswith("usage: entrocraft COMMAND")
    for name in ("train", "compare", "report", "dynamics"):
        done = run(command, name, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"entrocraft {name} needs the extra [lab] (No module named ")
        assert done.stderr.endswith("): pip install 'entrocraft[lab]'\n")
        assert done.stderr.count("\n") == 1
    done = run(python, "-c", "import entrocraft.trl", cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'entrocraft[trl]'" in done.stderr
