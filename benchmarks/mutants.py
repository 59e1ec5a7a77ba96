"""Which mutants of the core no test tells from the code, and why each of them may live.

    make mutants      # mutmut run, then this; writes benchmarks/results/mutants.json

A survivor is known by its function and its change, not by mutmut's number, which moves with every
edit. Those that are new are written down without a reason; the exit status is 1 while there are
any, or while more than `MOST` of all mutants survive.
"""

import json
import sys
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

RESULTS = Path(__file__).parent / "results" / "mutants.json"
MOST = 0.05


def survivor(name: str, path: Path) -> dict[str, str]:
    """Function, its line, and what the mutant has in the place of it."""
    function = name.partition("__mutmut_")[0].removeprefix("entrocraft.")
    module, _, function = function.rpartition(".")
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    lines = {"-": [], "+": []}
    for line in get_diff_for_mutant(name, path=path).splitlines():
        if line[:1] in lines and not line.startswith(("---", "+++")):
            lines[line[0]].append(line[1:].strip())
    changed = {"line": " ".join(lines["-"]), "mutant": " ".join(lines["+"])}
    return {"function": f"{module}.{function}", **changed}


def main() -> int:
    """Write the results and return the exit status."""
    modules, survivors = {}, []
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        found = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        # a mutant that never ends is found out too
        alive = [name for name, status in found.items() if status not in ("killed", "timeout")]
        if found:
            modules[str(path)] = {"mutants": len(found), "survived": len(alive)}
        survivors += [survivor(name, path) for name in alive]
    before = json.loads(RESULTS.read_text())["survivors"] if RESULTS.exists() else []
    reasons = {tuple(one.values())[:3]: one["reason"] for one in before}
    survivors = [{**one, "reason": reasons.get(tuple(one.values()), "")} for one in survivors]
    mutants = sum(module["mutants"] for module in modules.values())
    total = {"mutants": mutants, "survived": len(survivors)}
    written = {"command": "make mutants", "total": total, "modules": modules}
    text = json.dumps(written | {"survivors": survivors}, indent=1, ensure_ascii=False)
    RESULTS.write_text(text + "\n")
    for one in survivors:
        if not one["reason"]:
            print(f"{one['function']}\n  - {one['line']}\n  + {one['mutant']}")
    unexplained = sum(not one["reason"] for one in survivors)
    print(
        f"{len(survivors)} of {mutants} mutants survive, {unexplained} without a reason: {RESULTS}"
    )
    return int(unexplained > 0 or len(survivors) > MOST * mutants)


if __name__ == "__main__":
    sys.exit(main())
