"""Models and settings of training runs that take seconds."""

import signal
from pathlib import Path

import yaml

from entrocraft.lab.models import ReasonerConfig, build_reasoner, build_tokenizer

SHAPE = ReasonerConfig(hidden_size=32, layers=1, heads=2, intermediate_size=32, max_positions=512)
CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_home(root: Path) -> Path:
    """Put two untrained models into a directory: plain, and one that chats."""
    for name, template in (("plain", None), ("chat", CHAT)):
        tokenizer = build_tokenizer(SHAPE.max_positions)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(root / name)
        build_reasoner(SHAPE, tokenizer).save_pretrained(root / name)
    return root


def keys(home, output, **changes):
    base = {
        "output": str(output),
        "model": str(home / "plain"),
        "cache_dir": str(home / "cache"),
        "steps": 4,
        "prompts": 4,
        "generations": 4,
        "max_completion_length": 6,
        "save_every": 2,
        "task": {"name": "countdown", "train_size": 40},
        "evaluation": {
            "probe_every": 2,
            "probe_prompts": 16,
            "every": 4,
            "prompts": 4,
            "samples": 2,
        },
    }
    return base | changes


def config_file(path, values):
    path.write_text(yaml.safe_dump(values))
    return str(path)


def obey_ctrl_c():
    """In a new process: take SIGINT as a terminal sends it; a job in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
