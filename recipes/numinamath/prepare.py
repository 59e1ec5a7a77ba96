"""Writes the problems of the NuminaMath recipe in verl's format.

    python prepare.py data

Problems whose prompt is longer than 700 tokens go; the rest is shuffled with seed 42, and the first
103,424 stay: 101 batches of 1,024. MATH-500 is for validation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


def row(problem: str, answer: str, source: str, index: int) -> dict[str, Any]:
    """One problem as verl reads it."""
    return {
        "data_source": source,
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": problem + SUFFIX},
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": index},
    }


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """Write rows as parquet."""
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(str(file))
    print(f"{file}: {len(rows)} problems")


def main() -> None:
    """Read the command line, download, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="directory for train.parquet and test.parquet")
    parser.add_argument("--tokenizer", default="Qwen/Qwen3-4B-Base")
    parser.add_argument("--problems", type=int, default=103_424)
    parser.add_argument("--longest", type=int, default=700, help="longest prompt, in tokens")
    options = parser.parse_args()
    from datasets import load_dataset
    from reward import boxed
    from transformers import AutoTokenizer

    options.output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    train = load_dataset("ScaleML-RLHF/numina_math", split="train")
    short = train.filter(
        lambda item: len(tokenizer(item["problem"]).input_ids) <= options.longest
    ).shuffle(seed=42)
    rows = []
    for index, item in enumerate(short):
        answer = item.get("answer") or boxed(item.get("solution") or "")
        if answer:
            rows.append(row(item["problem"], str(answer), "numina_math", index))
        if len(rows) == options.problems:
            break
    write(rows, options.output / "train.parquet")
    test = load_dataset("HuggingFaceH4/MATH-500", split="test")
    tests = [row(item["problem"], item["answer"], "math500", i) for i, item in enumerate(test)]
    write(tests, options.output / "test.parquet")


if __name__ == "__main__":
    main()
