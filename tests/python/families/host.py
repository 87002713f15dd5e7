"""One model in SGLang's own `ModelRunner`, in this process, without a scheduler: load, prefill, decode.

Each run is a process of its own (`sweep` forks it): SGLang keeps its configuration, its groups and its
pools in globals. Logits of every prompt token and of every decoded token are kept.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import socket
import zlib
from array import array
from pathlib import Path
from typing import Any

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

import torch

LENGTHS = (5, 9, 14)
STEPS = 4


def prompts(vocabulary: int) -> list[list[int]]:
    """Token ids of three prompts of different lengths, none of them among the first 16 ids."""
    numbers = random.Random(7)
    return [[numbers.randrange(16, vocabulary) for _ in range(length)] for length in LENGTHS]


def run(folder: Path, options: dict[str, Any], *, drawn: bool, progress: Any) -> dict[str, Any]:
    """Loads the model in `folder` and generates.

    Args:
        folder: The checkpoint, or a folder with config.json alone.
        options: SGLang's server arguments beyond the CPU engine's.
        drawn: Draw the weights here, by parameter name, instead of reading a checkpoint.
        progress: Called with the name of each stage that begins, for the reason of a failure.

    Returns:
        prompts, generated ids [3][STEPS], logits: one [prompt + STEPS - 1, vocabulary] tensor per prompt,
        and the runner.
    """
    progress("arguments")
    runner = _runner(folder, options, drawn=drawn, progress=progress)
    progress("forward")
    ids = prompts(min(384, runner.model_config.vocab_size))
    generated, logits = _generate(runner, ids)
    return {"prompts": ids, "generated": generated, "logits": logits, "runner": runner}


def _runner(folder: Path, options: dict[str, Any], *, drawn: bool, progress: Any) -> Any:
    from sglang.srt.arg_groups import model_override_base
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    if drawn:
        _draw_weights()
    settings = {
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "dtype": "float32",
        "max_total_tokens": 1024,
        "max_running_requests": 8,
        "context_length": 256,
        # Of what happens to be free; the cache itself takes a few megabytes.
        "mem_fraction_static": 0.95,
        "skip_tokenizer_init": True,
        "trust_remote_code": True,
        "disable_radix_cache": True,
        "log_level": "error",
        "load_format": "dummy" if drawn else "auto",
        "random_seed": 1,
    }
    settings |= options
    model_override_base.MODEL_OVERRIDES.clear()  # bfloat16 for two classes, whatever is asked for
    args = ServerArgs(model_path=str(folder), **settings)
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    initialize_moe_config()
    progress("configuration")
    config = ModelConfig.from_server_args(args)
    port = _free_port()
    bootstrap.init_parallel_runtime(server_args=args, device="cpu", dist_port=port)
    bootstrap.init_layer_runtime(model_config=config)
    progress("load")
    runner = ModelRunner(
        model_config=config, mem_fraction_static=0.95, gpu_id=0, nccl_port=port, server_args=args
    )
    # A router and a head that SGLang keeps in bfloat16 for speed: one rounding there outweighs all that is
    # compared, or hides it.
    for name, parameter in runner.model.named_parameters():
        if settings["dtype"] == "float32" and name.endswith(("mlp.gate.weight", "lm_head.weight")):
            parameter.data = parameter.data.float()
    progress("memory")
    runner.alloc_memory_pool()
    runner.init_attention_backends()
    if mambaish_config(config) is not None:
        from sglang.kernels.ops.mamba.triton_ops import initialize_mamba_selective_state_update_backend

        initialize_mamba_selective_state_update_backend(args)
    runner.init_cuda_graphs()
    return runner


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _draw_weights() -> None:
    """SGLang's dummy weights are too small for an activation to bend: larger ones, by parameter name."""
    from sglang.srt.model_loader import loader

    def draw(model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, tensor in tensors.items():
            if not torch.is_floating_point(tensor.data) or "rotary" in name or "inv_freq" in name:
                continue
            if name not in dict(model.named_parameters()) and "cos_sin" in name:
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            norm = tensor.dim() == 1 and name.endswith("weight")
            values = 1 + 0.1 * values if norm else 0.12 * values
            tensor.data.copy_(values)
        if any(getattr(module, "w_kc", 0) is None for module in model.modules()):
            model.load_weights(iter(()))  # where some classes split the weights of latent attention
            inner = getattr(model, "language_model", None)
            if hasattr(inner, "post_load_weights"):  # and here where load_weights wants some to pass on
                inner.post_load_weights()

    loader.initialize_dummy_weights = draw


def _generate(runner: Any, ids: list[list[int]]) -> tuple[list[list[int]], list[torch.Tensor]]:
    from sglang.benchmark import one_batch
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    requests = []
    for number, prompt in enumerate(ids):
        request = Req(
            rid=str(number),
            origin_input_text="",
            origin_input_ids=array("q", prompt),
            sampling_params=SamplingParams(temperature=0, max_new_tokens=STEPS),
        )
        request.full_untruncated_fill_ids = request.origin_input_ids
        request.logprob_start_len = -1
        request.set_extend_range(0, len(prompt))
        requests.append(request)
    if not runner.model_config.is_generation:
        return [], _embeddings(requests, runner)
    with _all_logits() as rows:
        next_ids, _, batch = one_batch.extend(requests, runner)
    if not rows or rows[-1].shape[0] != sum(map(len, ids)):
        raise RuntimeError("the model does not hand all tokens to SGLang's LogitsProcessor")
    per_prompt = list(rows[-1].split([len(prompt) for prompt in ids]))
    generated = [[token] for token in next_ids.tolist()]
    for _ in range(STEPS - 1):
        next_ids, step = one_batch.decode(next_ids, batch, runner)
        for row, token in enumerate(next_ids.tolist()):
            generated[row].append(token)
            per_prompt[row] = torch.cat((per_prompt[row], step[row : row + 1].float().cpu()))
    return generated, per_prompt


@contextlib.contextmanager
def _all_logits():
    """Within, the logits of all tokens of a prefill are kept; SGLang itself computes the last one's."""
    from sglang.srt.layers.logits_processor import LogitsMetadata, LogitsProcessor
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    rows: list[torch.Tensor] = []
    original = LogitsProcessor.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        view = given["logits_metadata"]
        if isinstance(view, ForwardBatch):
            view = LogitsMetadata.from_forward_batch(view)
        every = self._get_logits(given["hidden_states"], given["lm_head"], view)
        rows.append(every.float().cpu().clone())
        return original(self, *args, **kwargs)

    LogitsProcessor.forward = forward
    try:
        yield rows
    finally:
        LogitsProcessor.forward = original


def _embeddings(requests: list[Any], runner: Any) -> list[torch.Tensor]:
    """What an embedding, classification or reward model returns for each prompt."""
    from sglang.benchmark import one_batch
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.runtime_context import get_schedule
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    tree = one_batch.TreeCacheNamespace(
        page_size=get_schedule().page_size,
        device=runner.device,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
    )
    batch = ScheduleBatch.init_new(
        reqs=requests,
        req_to_token_pool=runner.req_to_token_pool,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        tree_cache=tree,
        model_config=runner.model_config,
        enable_overlap=False,
        spec_algorithm=SpeculativeAlgorithm.NONE,
    )
    batch.prepare_for_extend()
    if batch.input_ids is None:
        batch.input_ids = batch.prefill_input_ids_cpu
        batch.prefill_input_ids_cpu = None
    with torch.no_grad():
        output = runner.forward(ForwardBatch.init_new(batch, runner, return_hidden_states_before_norm=False))
    embeddings = output.logits_output.embeddings
    return [row.float().reshape(1, -1) for row in embeddings]
