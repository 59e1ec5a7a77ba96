"""`train --dry-run`: what would fail or be in vain, found before the first optimizer step.

A run's directory, options, data, model, tokenizer, template and reward are resolved, and the model
answers ten problems. Nothing is trained, and nothing is written into the run's directory.
"""

from __future__ import annotations

import statistics
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from entrocraft.feedback.start import far_from_start
from entrocraft.lab.evaluation import Evaluation, evaluate
from entrocraft.lab.models import WarmStartConfig, build_reasoner, build_tokenizer, load_model
from entrocraft.lab.tasks import DataTask, Problem, Task, get_task
from entrocraft.lab.tasks.prompts import (
    as_completion,
    prompt_lengths,
    short_enough,
    speaks_chat,
    text_prompt,
)
from entrocraft.lab.tasks.rewards import BUILT_IN
from entrocraft.lab.tasks.store import stored_problems
from entrocraft.lab.training.config import TINY, TrainConfig
from entrocraft.lab.training.directory import RunDirectory
from entrocraft.lab.training.memory import available, estimate
from entrocraft.lab.training.trainer import config_class, trainer_arguments
from entrocraft.lab.waiting import progress_bar
from entrocraft.trl.checkpoint import rollouts_and_decay

_EXAMPLES = 10
_SAMPLES = 4
_SHOWN = 300  # characters of a prompt or an answer
_LARGE = 50_000_000  # parameters above which the tiny model's learning rate is too high
_MARK = "An answer"
_STYLES = {"ok": "green", "warning": "yellow", "fails": "red"}


class _Stop(Exception):
    """What was found keeps the rest from being looked at."""


class DryRun:
    """Checks of a run, each printed as it is made.

    Args:
        config: of the run.
        console: for one line a finding.

    Attributes:
        found: (kind, part, text) of every finding; kinds are ok, warning and fails.
    """

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.found: list[tuple[str, str, str]] = []

    def run(self) -> bool:
        """Make all checks; return whether nothing was found that would fail."""
        try:
            self._check()
        except _Stop:
            self.console.print("the rest was not checked", highlight=False)
        count = {kind: sum(kind == each for each, *_ in self.found) for kind in _STYLES}
        text = f"{count['fails']} would fail, {count['warning']} warnings; nothing was trained"
        self.console.print(f"dry run: {text}", highlight=False)
        return not count["fails"]

    def say(self, kind: str, part: str, text: str) -> None:
        """Keep and print a finding."""
        text = " ".join(text.split())
        self.found.append((kind, part, text))
        style = f"[{_STYLES[kind]}]{kind:8}[/]"
        self.console.print(f"{style} {part}: {escape(text)}", soft_wrap=True, highlight=False)

    @contextmanager
    def _part(self, part: str) -> Iterator[None]:
        """Errors within are what fails, and end the checks; Python warnings are warnings."""
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            try:
                yield
            except (ValueError, OSError, RuntimeError, ImportError) as error:
                self.say("fails", part, str(error))
                raise _Stop from error
            finally:
                for text in dict.fromkeys(str(each.message) for each in raised):
                    self.say("warning", part, text)

    def _check(self) -> None:
        config = self.config
        with self._part("output"):
            RunDirectory(config.output).check(config)
        with self._part("trainer"):
            arguments = trainer_arguments(config)
            self._check_batch(config_class(config)(**arguments))
        with self._part("data"):
            task = get_task(config.task.name, **config.task.options)
            size, cache = config.task.train_size, config.cache_dir
            problems = stored_problems(task, "train", size, cache_dir=cache, fewer=True)
            if isinstance(task, DataTask):
                self.say("ok", "data", task.describe())
        with self._part("model"):
            model, tokenizer = self._load()
            chat = speaks_chat(tokenizer, config.chat)
            self._check_model(model, tokenizer, chat)
        with self._part("prompts"):
            kept = short_enough(problems, tokenizer, chat, config.task.max_prompt_tokens)
            longest = self._check_prompts(model, tokenizer, kept, len(problems), chat)
        self._check_memory(estimate(config, model, arguments, longest))
        examples = kept[:_EXAMPLES]
        if isinstance(task, DataTask):
            self._check_reward(task, examples, chat)
        if config.model == TINY:
            text = "the tiny model is trained first, for minutes, and then kept; not sampled here"
            self.say("ok", "sampling", text)
        elif any(kind == "fails" for kind, *_ in self.found):
            raise _Stop
        else:
            with self._part("sampling"):
                self._sample(model, tokenizer, task, examples, chat)

    def _check_batch(self, arguments: Any) -> None:
        config, measured = self.config, _measured_answers(self.config)
        rollouts, decay = rollouts_and_decay(arguments)
        trained = config.prompts * config.generations * -(-config.steps // config.updates)
        batch = f"{config.prompts} prompts x {config.generations} rollouts"
        text = f"{batch}, {rollouts} an update, {trained:,} in {config.steps} updates"
        self.say("ok", "batch", text)
        method = config.control.build(config.seed)
        for text in method.start_warnings(config.steps, rollouts, decay):
            self.say("warning", "schedule", text)
        if measured > trained:
            text = f"it samples {measured:,} answers, training {trained:,}; raise "
            text += "evaluation.probe_every and every, or lower probe_prompts, prompts and samples"
            self.say("warning", "evaluation", text)

    def _load(self) -> tuple[Any, Any]:
        config = self.config
        if config.model != TINY:
            return load_model(config.model, config.eos, dtype=config.dtype)
        shape = WarmStartConfig.for_task(config.task.name).reasoner
        tokenizer = build_tokenizer(shape.max_positions)
        return build_reasoner(shape, tokenizer), tokenizer

    def _check_model(self, model: Any, tokenizer: Any, chat: bool) -> None:
        config, vocabulary = self.config, model.config.get_text_config().vocab_size
        count = model.num_parameters()
        size = f"{type(model).__name__}, {_count(count)} weights in {config.dtype}"
        template = "messages by its chat template" if chat else "plain text"
        self.say("ok", "model", f"{size}, {vocabulary:,} tokens; it reads {template}")
        if config.lora is None and count > _LARGE and config.learning_rate > 1e-4:
            text = f"{config.learning_rate:g} is for models of under a million weights; usual are "
            text += "1e-6 for all weights of a language model, 1e-5 to 1e-4 for adapters (lora)"
            self.say("warning", "learning_rate", text)
        config.control.build(config.seed).prepare(vocabulary=vocabulary, steps=config.steps)
        if len(tokenizer) > vocabulary:
            text = (
                f"it has {len(tokenizer):,} tokens and the model {vocabulary:,}; they are of two "
            )
            self.say("fails", "tokenizer", f"{text}models, or the embeddings were not resized")
        end = end_of_answer(tokenizer) if chat else None
        if end is None or end == tokenizer.eos_token:
            self.say("ok", "tokenizer", f"eos {tokenizer.eos_token}, pad {tokenizer.pad_token}")
            return
        text = f"the chat template ends an answer with {end}, the tokenizer's eos is "
        text += f"{tokenizer.eos_token}, so answers run to max_completion_length; set --eos '{end}'"
        self.say("fails", "tokenizer", text)

    def _check_prompts(
        self, model: Any, tokenizer: Any, kept: list[Problem], count: int, chat: bool
    ) -> int:
        config = self.config
        lengths = prompt_lengths(kept, tokenizer, chat)
        longest, middle = max(lengths), statistics.median(lengths)
        text = f"{len(kept):,}, of {middle:.0f} tokens in the middle and {longest} at most"
        if count > len(kept):
            text += f"; {count - len(kept):,} are longer than task.max_prompt_tokens"
        used = config.prompts * -(-config.steps // config.updates)
        text += f"; the run uses {used:,}, so each {used / len(kept):.1f} times"
        self.say("ok", "prompts", text)
        self.say("ok", "first prompt", _short(text_prompt(kept[0], tokenizer, chat)))
        if len(kept) < config.prompts:
            text = f"{len(kept)} are fewer than the {config.prompts} of a batch; lower prompts or "
            self.say("fails", "prompts", f"{text}add data")
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and longest + config.max_completion_length > room:
            text = f"the longest and max_completion_length={config.max_completion_length} need "
            text += f"{longest + config.max_completion_length} positions, the model has {room}; "
            self.say("fails", "prompts", f"{text}lower it, or set task.max_prompt_tokens")
        return longest

    def _check_memory(self, parts: dict[str, float]) -> None:
        free, device = available()
        total = sum(parts.values())
        listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
        text = f"about {_size(total)} ({listed}), {_size(free)} are free on {device}"
        if total <= free:
            return self.say("ok", "memory", text)
        remedies = "lora, dtype: bfloat16, a smaller micro_batch or evaluation.batch_size, or "
        remedies += "sharding over several GPUs (accelerate launch)"
        return self.say("warning", "memory", f"{text}. What helps: {remedies}")

    def _check_reward(self, task: DataTask, problems: list[Problem], chat: bool) -> None:
        """Reward true answers and those of other problems."""
        if task.answer is None:
            return
        others = problems[1:] + problems[:1]
        try:
            true, wrong = (
                _best_rewards(task, problems, [each.answer for each in answered], chat)
                for answered in (problems, others)
            )
        except ValueError as error:
            self.say("fails", "reward", str(error))
            return
        except Exception as error:  # the user's function
            frame = traceback.extract_tb(error.__traceback__)[-1]
            kind, place = type(error).__name__, f"{frame.filename}:{frame.lineno}"
            self.say("fails", "reward", f"{task.reward} raised {kind}: {error} ({place})")
            return
        text = f"{task.reward} gives true answers {_mean(true)}, those of other problems "
        text += f"{_mean(wrong)} on average ({len(problems)} problems)"
        if _mean(true) > _mean(wrong):
            self.say("ok", "reward", text)
        elif task.reward in BUILT_IN:
            text += f"; look at the column {task.answer!r}, whose first answer is read as "
            self.say("fails", "reward", f"{text}{_short(problems[0].answer)}")
        else:
            text += "; this is as it should be only if it wants a form that they lack"
            self.say("warning", "reward", text)

    def _sample(
        self, model: Any, tokenizer: Any, task: Task, problems: list[Problem], chat: bool
    ) -> None:
        config, start = self.config, time.monotonic()
        if torch.cuda.is_available():
            model.cuda()
        seen: list[Evaluation] = []
        for seed in progress_bar(range(_SAMPLES), "sampling answers", _SAMPLES):
            options: dict[str, Any] = {"temperature": config.temperature, "chat": chat}
            length = config.max_completion_length
            seen.append(
                evaluate(
                    model, tokenizer, task, problems, max_new_tokens=length, seed=seed, **options
                )
            )
        rewards = torch.stack([each.rewards[:, 0] for each in seen], dim=1).nan_to_num()
        entropy = statistics.mean(each.entropy.value for each in seen)
        finished = statistics.mean(each.finished for each in seen)
        tokens = statistics.mean(each.length for each in seen)
        mixed = int((rewards.amax(1) > rewards.amin(1)).sum())
        count = rewards.numel()
        text = f"{count} answers: reward {rewards.mean():.3g}, entropy {entropy:.3g} nats per token"
        text += f", {tokens:.0f} tokens, {finished:.0%} ended by themselves"
        seconds = time.monotonic() - start
        self.say("ok", "sampling", f"{text}, {seconds:.0f} s")
        rollouts = config.prompts * config.generations * -(-config.steps // config.updates)
        hours = seconds / count * (rollouts + _measured_answers(config)) / 3600
        text = f"{hours:.1f} h of sampling for the whole run at this pace, of {len(problems)} "
        self.say(
            "ok", "time", f"{text}answers at a time; larger batches are faster, updates come on top"
        )
        self.say("ok", "an answer", _short(next(iter(seen[0].results[0])) or "(nothing)"))
        if not mixed:
            same = f"all {rewards.min():g}" if rewards.amin() == rewards.amax() else "one a problem"
            text = f"the rewards are {same}: no problem's answers differ in reward, and only such "
            text += "teach anything. Take easier problems, a better model or more generations"
            self.say("warning", "reward", text)
        if finished < 0.5:
            text = f"{1 - finished:.0%} of the answers were cut at max_completion_length="
            self.say("warning", "sampling", f"{text}{config.max_completion_length}; raise it")
        method = config.control.build(config.seed)
        stderr = seen[0].entropy.stderr / _SAMPLES**0.5
        target = method.target(0)
        far = None if target is None else far_from_start(target, entropy, stderr)
        if far is not None:
            self.say("warning", "schedule", far)


def end_of_answer(tokenizer: Any) -> str | None:
    """Special token that the chat template puts after an answer, None if it puts none.

    Raises:
        ValueError: the template cannot be rendered.
    """
    messages = [{"role": "user", "content": "A question"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # whatever the template says
        raise ValueError(f"the chat template cannot be rendered: {error}") from error
    after = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    special = [
        token for token in after if token in tokenizer.all_special_ids or _added(tokenizer, token)
    ]
    return tokenizer.convert_ids_to_tokens(special[0]) if special else None


def _added(tokenizer: Any, token: int) -> bool:
    found = tokenizer.added_tokens_decoder.get(token)
    return found is not None and found.special


def _best_rewards(
    task: DataTask, problems: list[Problem], answers: list[str], chat: bool
) -> list[float]:
    """Rewards of answers, as they stand or in a box, whichever is more."""
    best = [0.0] * len(problems)
    for form in ("{}", "\\boxed{{{}}}"):
        said = [as_completion(form.format(answer), chat) for answer in answers]
        found = task.rewards(problems, said)
        best = [max(old, new or 0.0) for old, new in zip(best, found, strict=True)]
    return best


def _measured_answers(config: TrainConfig) -> int:
    """Answers that probe and evaluation sample in a run."""
    settings, steps = config.evaluation, config.steps
    parts = (
        (settings.probe_every, settings.probe_prompts),
        (settings.every, settings.prompts * settings.samples),
    )
    return sum((-(-steps // every) + 1) * size for every, size in parts if every)


def _count(number: int) -> str:
    return f"{number / 1e6:,.0f}M" if number >= 1e7 else f"{number:,}"


def _mean(values: list[float]) -> float:
    return round(statistics.mean(values), 3)


def _short(text: str) -> str:
    text = repr(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
