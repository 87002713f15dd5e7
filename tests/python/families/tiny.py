"""Tiny sizes for any configuration: each known key gets a small value, wherever it stands in the file.

Only sizes are here. What a model computes, its activation keys above all, is left as its configuration
class or its published file has it.
"""

from __future__ import annotations

from typing import Any

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCABULARY = 64, 4, 2, 16, 2, 384

_SIZES: dict[str, Any] = {
    # The model.
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "model_dim"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "num_kv_heads"), KV_HEADS),
    **dict.fromkeys(("head_dim", "kv_channels", "global_head_dim", "swa_head_dim"), HEAD_DIM),
    **dict.fromkeys(("vocab_size", "padded_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"), 512),
    "type_vocab_size": 2,
    "word_embed_proj_dim": HIDDEN,
    "hidden_size_per_layer_input": 16,
    # MLPs.
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 48
    ),
    "intermediate_size_mlp": 96,
    # Experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token"), 2
    ),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    "zero_expert_num": 2,
    # Latent attention; SGLang's Triton kernels know 512 + 64 and 256 + 32 as the two parts of a key.
    "q_lora_rank": 32,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "qk_head_dim": 48,
    "v_head_dim": 16,
    "index_head_dim": 32,
    "index_n_heads": 4,
    "index_topk": 64,
    "query_pre_attn_scalar": 16,
    # Other parts.
    **dict.fromkeys(("depth", "vision_num_layers", "num_global_layers"), 2),
    **dict.fromkeys(("embed_dim", "out_hidden_size", "projection_dim", "vision_output_dim"), HIDDEN),
    "image_size": 56,
    "patch_size": 14,
    "num_mel_bins": 16,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_state": 16,
    "ssm_state_size": 16,
    "state_size": 16,
    "mamba_d_ssm": 128,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "decoder_start_token_id": 0,
    "initializer_range": 0.12,
    "init_std": 0.12,
    "sliding_window": 128,
    "attention_chunk_size": 256,
}
# One entry per layer: cut to the layers that are left.
_PER_LAYER = (
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "no_rope_layers",
    "moe_layers",
    "hybrid_layer_pattern",
    "moe_layer_freq",
    "swiglu_limits",
    "swiglu_limits_shared",
    "num_attention_heads_per_layer",
    "compress_ratios",
)
_REMOVED = ("architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of `config` with small values in place of its sizes, nested configurations too."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if key in _REMOVED:
            continue
        if isinstance(value, dict) and key.endswith("config"):
            out[key] = shrink(value)
        elif key in _SIZES and not isinstance(value, (dict, list, tuple, bool)):
            out[key] = _SIZES[key] if value is not None or key == "pad_token_id" else None
        elif key in _PER_LAYER and isinstance(value, list):
            out[key] = value[:LAYERS]
        else:
            out[key] = value
    for key in ("rope_parameters", "rope_scaling"):
        rope = out.get(key)
        if isinstance(rope, dict) and "mrope_section" in rope:
            out[key] = {**rope, "mrope_section": [2, 3, 3]}
    return out


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, objects key by key."""
    out = dict(base)
    for key, value in over.items():
        out[key] = (
            merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
        )
    return out
