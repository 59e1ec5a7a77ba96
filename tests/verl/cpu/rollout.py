"""The rollout backend ``hf_cpu``: `transformers` generates, in one Ray actor for each worker."""

import asyncio
from collections import defaultdict

import ray
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

CHUNK = 8
"""Tokens sampled between two looks at what else is asked for."""


def server_name(rank):
    return f"hf_cpu_{rank}"


class Server:
    """Samples from its own copy of the policy, which is random until the first weights arrive."""

    def __init__(self, rank, config, model_config):
        self.limit = config.response_length
        model = omega_conf_to_dataclass(model_config).hf_config
        torch.manual_seed(config.seed + rank)
        self.model = AutoModelForCausalLM.from_config(model, dtype=torch.float32).eval()
        self.version = None
        self.gate = asyncio.Event()
        self.waiting = []

    async def load(self, weights, version):
        self.model.load_state_dict(weights)
        self.version = version
        self.gate.set()

    async def sleep(self):
        self.gate.clear()

    async def abort_all_requests(self, reject_request=False):
        self.gate.clear()

    async def resume_generation(self):
        self.gate.set()

    async def generate(self, prompt_ids, sampling_params, **_):
        limit = sampling_params.get("max_tokens", self.limit)
        settings = tuple(sampling_params[name] for name in ("temperature", "top_p", "top_k"))
        tokens, log_probs = [], []
        await self.gate.wait()
        while len(tokens) < limit:
            future = asyncio.get_running_loop().create_future()
            if not self.waiting:
                asyncio.get_running_loop().call_later(0.02, self.sample)
            self.waiting.append((settings, [*prompt_ids, *tokens], future))
            new, new_log_probs = await future
            tokens += new[: limit - len(tokens)]
            log_probs += new_log_probs[: limit - len(log_probs)]
            if tokens[-1] == self.model.config.eos_token_id or not self.gate.is_set():
                break
        ended = len(tokens) == limit or tokens[-1] == self.model.config.eos_token_id
        return TokenOutput(
            token_ids=tokens,
            log_probs=log_probs,
            stop_reason="completed" if ended else "aborted",
            extra_fields={"global_steps": self.version},
        )

    def sample(self):
        groups = defaultdict(list)
        for settings, ids, future in self.waiting:
            groups[settings].append((ids, future))
        self.waiting = []
        for settings, requests in groups.items():
            rows, futures = zip(*requests, strict=True)
            for future, result in zip(futures, self.extend(rows, *settings), strict=True):
                future.set_result(result)

    @torch.no_grad()
    def extend(self, rows, temperature, top_p, top_k):
        """Yield the next tokens of each row and their log-probabilities."""
        eos, pad = self.model.config.eos_token_id, self.model.config.pad_token_id
        width = max(map(len, rows))
        output = self.model.generate(
            torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
            attention_mask=torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            ),
            generation_config=GenerationConfig(
                do_sample=temperature > 0,
                temperature=temperature or 1.0,
                top_p=top_p,
                top_k=max(top_k, 0),
                max_new_tokens=CHUNK,
                pad_token_id=pad,
                eos_token_id=eos,
                output_scores=True,
                return_dict_in_generate=True,
            ),
        )
        tokens = output.sequences[:, width:]
        scores = torch.stack(output.scores, dim=1).log_softmax(-1)
        log_probs = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
        for row, row_log_probs in zip(tokens.tolist(), log_probs, strict=True):
            length = row.index(eos) + 1 if eos in row else len(row)
            yield row[:length], row_log_probs[:length]


class Replica(RolloutReplica):
    async def launch_servers(self):
        self._server_address = server_name(self.replica_rank)
        self._server_handle = (
            ray.remote(Server)
            .options(name=self._server_address, num_cpus=0, max_concurrency=10_000)
            .remote(self.replica_rank, self.config, self.model_config)
        )
        self.servers = [self._server_handle]


class Adapter(BaseRollout):
    """A worker's side: hands the weights to the server of the same rank."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, global_steps=None, **_):
        weights = {name: tensor.detach() for name, tensor in weights}
        server = ray.get_actor(server_name(self.device_mesh.get_rank()))
        await server.load.remote(weights, global_steps)


RolloutReplicaRegistry.register("hf_cpu", lambda: Replica)
_ROLLOUT_REGISTRY["hf_cpu", "async"] = f"{__name__}.Adapter"
