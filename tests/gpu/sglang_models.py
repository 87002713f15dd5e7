"""Small random models for SGLang on a GPU, and what they compute in float64.

Sizes are those that SGLang's GPU kernels take (widths of 128, MLA's published head sizes). Weights are large
enough for the activation to bend and routers wide enough that rounding seldom changes a choice. Quantised
checkpoints are made of a bfloat16 one; the reference loads the dequantised weights.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import torch

_COMMON = {
    "vocab_size": 1024, "hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.05,
}  # fmt: skip
_FINE = {
    "intermediate_size": 512, "moe_intermediate_size": 256, "num_experts_per_tok": 4,
    "n_routed_experts": 16, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": (
        "Mixtral",
        {"intermediate_size": 1024, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "intermediate_size": 512, "moe_intermediate_size": 256, "num_experts": 16,
            "num_experts_per_tok": 4, "norm_topk_prob": True,
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "intermediate_size": 512, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 512,
            "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": False,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2",
        {
            **_FINE, "num_key_value_heads": 8, "moe_layer_freq": 1, "scoring_func": "softmax",
            "topk_method": "greedy", "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "head_dim": 64, "norm_topk_prob": False,
            "routed_scaling_factor": 2.0,
        },
    ),
    "glm4_moe": ("Glm4Moe", {**_FINE, "norm_topk_prob": True, "routed_scaling_factor": 1.5}),
    "gpt_oss": (
        "GptOss",
        {
            "intermediate_size": 512, "num_local_experts": 8, "num_experts_per_tok": 4, "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"], "swiglu_limit": 7.0,
        },
    ),
}  # fmt: skip
# Where the reference is computed.
DEVICE = "cuda"
# Not shared_expert_gate, which weighs qwen2_moe's shared expert.
PARAMETERS_OF_ROUTERS = (".gate.weight", ".router.weight")


def tokenizer() -> Any:
    """A byte-level tokenizer of 1024 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def build(family: str, folder: Path) -> Path:
    """A bfloat16 checkpoint of `family`."""
    import transformers

    prefix, settings = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_COMMON, **settings, "dtype": "bfloat16"})
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(PARAMETERS_OF_ROUTERS):
                parameter.mul_(8)
            elif parameter.dim() == 2 and "bias" in name:  # experts' biases, zeros as drawn
                parameter.normal_(std=0.2)
            elif "expert" in name and parameter.dim() == 3:
                parameter.mul_(3)  # so that another function gives another answer
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def fp8_blocks(source: Path, folder: Path, dequantised: Path) -> None:
    """Experts in e4m3 by blocks of 128 × 128, in DeepSeek's checkpoint layout."""
    from flexact import formats

    tensors, config = _load(source)
    packed, plain = {}, {}
    for name, tensor in tensors.items():
        packed[name] = plain[name] = tensor
        if ".experts." in name and tensor.dim() == 2:
            codes, scale = formats.quantise(tensor, "fp8_block")
            packed |= {name: codes, f"{name}_scale_inv": scale}
            plain[name] = formats.dequantise(codes, scale, "fp8_block", dtype=torch.float32)
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        "ignored_layers": [*_attention(config), "lm_head"],
    }  # fmt: skip
    _save(source, folder, packed, config)
    _save(source, dequantised, plain, {**config, "quantization_config": None})


def nvfp4(source: Path, folder: Path, dequantised: Path) -> None:
    """Experts in NVFP4, in ModelOpt's checkpoint layout: a global scale for each of gate, up and down."""
    from flexact import formats

    tensors, config = _load(source)
    packed, plain = {}, {}
    for name, tensor in tensors.items():
        packed[name] = plain[name] = tensor
        if ".experts." in name and tensor.dim() == 2:
            whole = formats.nvfp4_global_scale(tensor.abs().amax())
            codes, scale = formats.quantise(tensor, "nvfp4", global_scale=whole)
            packed |= {name: codes, f"{name}_scale": scale, f"{name}_scale_2": whole}
            # Of activations, which nobody quantises here.
            packed[f"{name.removesuffix('weight')}input_scale"] = torch.ones(())
            plain[name] = formats.dequantise(codes, scale, "nvfp4", global_scale=whole, dtype=torch.float32)
    config["quantization_config"] = {
        "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16,
        "ignore": [*_attention(config), "lm_head"],
    }  # fmt: skip
    _save(source, folder, packed, config)
    _save(source, dequantised, plain, {**config, "quantization_config": None})


def _attention(config: dict[str, Any]) -> list[str]:
    """The linear layers of attention, as the checkpoint has them and as SGLang joins them."""
    layers = range(config["num_hidden_layers"])
    return [f"model.layers.{i}.self_attn.{name}_proj" for i in layers for name in ("q", "k", "v", "o", "qkv")]


def expert_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's experts, scales and biases included."""
    return sum(tensor.nbytes for name, tensor in _load(folder)[0].items() if ".experts" in name)


def mxfp4(source: Path, folder: Path, dequantised: Path) -> None:
    """GPT-OSS's experts in MXFP4, in its published layout."""
    from flexact import formats

    tensors, config = _load(source)
    packed, plain = {}, {}
    for name, tensor in tensors.items():
        packed[name] = plain[name] = tensor
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            # Held as [E, K, N]; the packed file has rows of K.
            codes, scale = formats.quantise(tensor.transpose(1, 2).contiguous(), "mxfp4")
            del packed[name]
            packed[f"{name}_blocks"] = codes.unflatten(-1, (-1, 16))
            packed[f"{name}_scales"] = scale
            plain[name] = formats.dequantise(codes, scale, "mxfp4", dtype=torch.float32).transpose(1, 2)
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
        ],
    }  # fmt: skip
    _save(source, folder, packed, config)
    _save(source, dequantised, plain, {**config, "quantization_config": None})


def _load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    tensors = {
        name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    return tensors, json.loads((folder / "config.json").read_text())


def _save(source: Path, folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if "token" in file.name or file.name == "generation_config.json":
            shutil.copy(file, folder)
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


# --- The reference --------------------------------------------------------------------------------


class Swish(torch.nn.Module):
    """x * sigmoid(beta * x), written by hand."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.beta * x)


def reference(folder: Path, beta: float | None, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Log-probabilities of each token but the first, in float64.

    Args:
        folder: A checkpoint with plain weights.
        beta: Of swish in every MLP and expert; None leaves the model as it is.
        sequences: Token ids.
    """
    model, result = _loaded(folder, beta), []
    for ids in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=DEVICE)).logits[0].double()
        known = torch.tensor(ids[1:], device=DEVICE)[:, None]
        result.append(torch.log_softmax(logits, -1)[:-1].gather(1, known)[:, 0].cpu())
    return result


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, beta: float | None) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    model = model.to(DEVICE).eval()
    for name, buffer in model.named_buffers():
        # Not in the checkpoint: a loader that is interfered with leaves them as they were allocated.
        if name.endswith("inv_freq") and not 0 < buffer.max() <= 1:
            raise AssertionError(f"{name} reaches to {buffer.max()}")
    if beta is not None:
        _replace(model, beta)
    return model


def _replace(model: torch.nn.Module, beta: float) -> None:
    replaced = 0
    for module in model.modules():
        if type(module).__name__ == "GptOssExperts":
            # Gate and up rows alternate; the class clamps and adds one, which the override replaces.
            module._apply_gate = lambda h: Swish(beta)(h[..., 0::2]) * h[..., 1::2]
            replaced += 1
        elif hasattr(module, "act_fn"):
            module.act_fn = Swish(beta)
            replaced += 1
    if not replaced:
        raise AssertionError("no activation was replaced")
