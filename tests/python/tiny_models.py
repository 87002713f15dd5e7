"""Tiny random checkpoints for tests: a byte-level tokenizer, two or three layers, float32, fixed seeds.

Every family is built from transformers' own configuration class. The weights are large enough for the
activation to bend: with the usual small initialisation all activations look linear.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROMPTS = ("hello world", "the quick brown fox", "one two three four five six")

_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "hello world this is a tiny test of an inference server",
    "one two three four five six seven eight nine ten",
)
_COMMON = {
    "vocab_size": 384,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.12,
}
_EXPERTS = {"num_experts_per_tok": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"intermediate_size": 96}),
    "mixtral": (
        "Mixtral",
        {"intermediate_size": 96, "num_local_experts": 4, "sliding_window": None, **_EXPERTS},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "head_dim": 16,
            "norm_topk_prob": True,
            **_EXPERTS,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "rope_scaling": {
                "type": "yarn",
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
            **_EXPERTS,
        },
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "head_dim": 16,
            "routed_scaling_factor": 1.0,
            **_EXPERTS,
        },
    ),
    "gemma2": ("Gemma2", {"intermediate_size": 96, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "starcoder2": (
        "Starcoder2",
        {"intermediate_size": 96, "use_bias": True, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "apertus": ("Apertus", {"intermediate_size": 96}),
    "afmoe": (
        "Afmoe",
        {
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
            "head_dim": 16,
            "layer_types": ["full_attention", "full_attention"],
            **_EXPERTS,
        },
    ),
    "olmoe": ("Olmoe", {"num_key_value_heads": 4, "intermediate_size": 48, "num_experts": 4, **_EXPERTS}),
}


def tokenizer() -> Any:
    """A byte-level BPE tokenizer with 384 entries at most."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_TEXT * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build(family: str, folder: Path, **changes: Any) -> Path:
    """Writes a checkpoint of `family` into `folder` and returns the folder.

    Args:
        family: A key of FAMILIES.
        folder: Where to.
        **changes: Changes to the configuration before the weights are drawn.
    """
    import torch
    import transformers

    prefix, settings = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_COMMON, **settings, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).float().eval()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    """Changes keys of config.json on disk, as a user would; a value of None removes the key."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config, indent=1))
    return folder
