"""For `make mutants`: few examples of hypothesis, and quick tests first.

Elsewhere the profile "usual" holds.
"""

import functools
import json
from pathlib import Path

from hypothesis import settings

settings.register_profile("usual", max_examples=150, deadline=None)
# each mutant is tried on the same few examples, so that a run can be repeated
settings.register_profile("mutants", max_examples=15, deadline=None, derandomize=True)
settings.load_profile("usual")

MUTMUT = Path("mutmut-stats.json")  # in the folder of the mutants, where mutmut runs the tests


@functools.cache
def seconds():
    return json.loads(MUTMUT.read_text())["duration_by_test"]


def pytest_collection_modifyitems(items):
    """The first test that fails ends the run of a mutant: let it be a quick one."""
    if MUTMUT.exists():
        items.sort(key=lambda item: seconds().get(item.nodeid, 0.0))
