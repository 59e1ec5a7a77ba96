"""verl's own tests of what the plug-in touches, with the plug-in loaded.

They are in verl's source archive, which comes from the same registry as verl; the wheel has none.
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version

import pytest

pytest.importorskip("verl", reason="verl is not installed")

# advantages of several trajectories, losses and their normalizers, rollout correction (bypass
# mode), metrics, the environment of Ray's workers
FILES = (
    "trainer/test_multi_trajectories_advantage_on_cpu.py",
    "trainer/test_constants_ppo_on_cpu.py",
    "trainer/ppo/test_core_algos_on_cpu.py",
    "trainer/ppo/test_loss_aggregation_on_cpu.py",
    "trainer/ppo/test_metric_utils_on_cpu.py",
    "trainer/ppo/test_rollout_corr.py",
    "trainer/ppo/test_rollout_corr_integration.py",
    "test_protocol_on_cpu.py",
)
LOADED = """
import entrocraft.verl
import verl.trainer.ppo.v1
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

assert "entrocraft_sync" in TRAINER_REGISTRY
assert FSDPEngineWithLMHead.prepare_model_outputs.serves_sensitivity
"""


@pytest.mark.slow
def test_verls_own_tests_pass_with_the_plug_in(tmp_path):
    name = f"verl=={version('verl')}"
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "verl"]
    done = subprocess.run(
        [*download, "--no-build-isolation", "--quiet", "--dest", str(tmp_path), name],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [archive] = tmp_path.glob("verl-*.tar.gz")
    with tarfile.open(archive) as file:
        # "data" keeps members inside the folder; older Pythons have it since their security updates
        file.extractall(tmp_path, filter="data")
    [tests] = tmp_path.glob("verl-*/tests")
    (tests / "conftest.py").write_text(LOADED)
    # as a folder of tests alone: the installed verl is what runs
    alone = tmp_path / "alone"
    tests.rename(alone)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES],
        cwd=alone,
        env=os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    print(done.stdout.splitlines()[-1])
