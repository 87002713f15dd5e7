"""What single classes need beyond tiny sizes, mostly keys that their published config.json has."""

from __future__ import annotations

from typing import Any

from families.published import YARN

_FULL_AND_SLIDING = {"layer_types": ["full_attention", "sliding_attention"]}
_LINEAR_AND_FULL = {
    "full_attention_interval": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
_MLA = {
    "num_key_value_heads": 4,
    "head_dim": 32,
    "rope_scaling": YARN,
    "rope_parameters": {**YARN, "rope_theta": 1e4},
}

CHANGES: dict[str, dict[str, Any]] = {
    "BertModel": {"position_embedding_type": "absolute"},
    "BertForSequenceClassification": {"position_embedding_type": "absolute"},
    "XLMRobertaModel": {"position_embedding_type": "absolute"},
    "XLMRobertaForSequenceClassification": {"position_embedding_type": "absolute"},
    "DeepseekV2ForCausalLM": {
        **_MLA,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "q_lora_rank": None,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
    },
    "DeepseekV3ForCausalLM": {
        **_MLA,
        "num_hidden_layers": 3,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    },
    "GPTJForCausalLM": {"rotary_dim": 8},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "Gemma2ForCausalLM": {"hidden_act": "gelu_pytorch_tanh"},
    "Gemma2ForSequenceClassification": {"hidden_act": "gelu_pytorch_tanh"},
    "Gemma3nForConditionalGeneration": {
        "text_config": {
            "intermediate_size": [96, 96],
            "activation_sparsity_pattern": [0.95, 0.0],
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "altup_num_inputs": 2,
        }
    },
    "Gemma3nForCausalLM": {
        "intermediate_size": [96, 96],
        "activation_sparsity_pattern": [0.95, 0.0],
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "altup_num_inputs": 2,
    },
    "Gemma4ForCausalLM": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16},
    "GptOssForCausalLM": {"swiglu_limit": 7.0},
    "Exaone4ForCausalLM": {
        "sliding_window_pattern": "LG",
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "GlmImageForConditionalGeneration": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
        }
    },
    "Glm4MoeLiteForCausalLM": {**_MLA, "first_k_dense_replace": 1},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["attention", "attention"]},
    "HYV3ForCausalLM": {"route_norm": True, "first_k_dense_replace": 1},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 16},
    "HunYuanMoEV1ForCausalLM": {
        "head_dim": 16,
        "moe_intermediate_size": 48,
        "num_shared_expert": 1,
        "moe_topk": 2,
        "use_mixed_mlp_moe": True,
        "attention_head_dim": 16,
        "use_qk_norm": False,  # torch_native attention answers in the shape that the norm leaves
        "hidden_act": "silu",
        "rope_scaling": None,
    },
    "LagunaForCausalLM": _FULL_AND_SLIDING,
    "MellumForCausalLM": _FULL_AND_SLIDING,
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16},
    # The norm of queries and keys is a Triton kernel that asserts a GPU.
    "MiniMaxM2ForCausalLM": {"scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": False},
    "OlmoForCausalLM": {"num_key_value_heads": 4},
    "OlmoeForCausalLM": {"num_key_value_heads": 4},
    "PhiForCausalLM": {"num_key_value_heads": 4},
    "Qwen2VLForConditionalGeneration": {"vision_config": {"in_chans": 3}},
    "Qwen3NextForCausalLM": _LINEAR_AND_FULL,
    "Qwen3_5ForCausalLM": _LINEAR_AND_FULL,
    "Qwen3_5MoeForCausalLM": _LINEAR_AND_FULL,
    "Qwen3_5ForConditionalGeneration": {"text_config": _LINEAR_AND_FULL},
    "Qwen3_5MoeForConditionalGeneration": {"text_config": _LINEAR_AND_FULL},
    "NemotronHForCausalLM": {"layers_block_type": ["attention", "mlp", "moe"]},
    "Qwen3OmniMoeForConditionalGeneration": {
        "talker_config": {"text_config": {"shared_expert_intermediate_size": 48}, "spatial_merge_size": 2}
    },
}
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"is_embedding": True}
    for name in (
        "BertModel",
        "BertForSequenceClassification",
        "XLMRobertaModel",
        "XLMRobertaForSequenceClassification",
        "LlamaEmbeddingModel",
        "MistralModel",
        "Contriever",
        "Qwen3Model",
        "EmbeddingGemmaModel",
        "Lfm2BidirectionalModel",
        "LlamaForClassification",
        "NanbeigeForSequenceClassification",
        "TransformersEmbeddingModel",
        "TransformersForSequenceClassification",
        "TransformersMoEEmbeddingModel",
        "TransformersMoEForSequenceClassification",
    )
}
# SGLang's classes insist on bfloat16.
OPTIONS |= {
    name: {"dtype": "bfloat16"}
    for name in (
        "K2HorizonForCausalLM",
        "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration",
        "XllmForCausalLM",
    )
}
_FUSED = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe"
# Functions that a model file calls by name: how they take gate and up, for the reference by hand.
FUNCTIONS: dict[str, dict[str, str]] = {
    "Lfm2ForCausalLM": {"torch.nn.functional.silu": "unary"},
    "Lfm2BidirectionalModel": {"torch.nn.functional.silu": "unary"},
    "Step3p5ForCausalLM": {"torch.nn.functional.silu": "unary"},
    "Step3p7ForConditionalGeneration": {"torch.nn.functional.silu": "unary"},
    "Phi3SmallForCausalLM": {"sglang.srt.models.phi3_small.gegelu": "interleaved"},
    "MiniMaxM3SparseForCausalLM": {f"{_FUSED}.swiglu_no_interleaved_with_alpha_and_limit": "halves"},
}
# Experts for which SGLang's CPU loop has another function than its own GPU kernels and the published code:
# without Step's limit, and with MiniMax's gate and up row by row where they lie in halves. The function in
# `reference` that is right.
PLAIN = {
    "Step3p5ForCausalLM": "step_limit",
    "Step3p7ForConditionalGeneration": "step_limit",
    "MiniMaxM3SparseForCausalLM": "swiglu_oai",
}
# SGLang loads these without an error and without all tensors that transformers saves.
NOT_READ = ("Llama4ForCausalLM", "NemotronHForCausalLM")
# What is no model of its own; said as the reason.
CANNOT: dict[str, str] = {
    "CLIPModel": "two encoders of images and text without a text model that generates",
    "PixtralVisionModel": "a part of a model: a vision tower",
}
# A draft model proposes tokens to another model; SGLang cannot run it alone.
DRAFT = ("NextN", "MTP", "Eagle", "DSpark", "DFlash", "Draft", "AssistantModel", "AssistantForCausalLM")
# What of SGLang ends the run of a class on this engine, where it is no matter of the tiny configuration.
_SPARSE = "sparse attention asks CUDA for the capability of the device before anything is loaded"
_KDA = "SGLang creates CUDA streams while it constructs the class"
_CLASS = "a defect of SGLang's class on every device"
LIMITS: dict[str, str] = {
    "DeepseekV32ForCausalLM": _SPARSE,
    "GlmMoeDsaForCausalLM": _SPARSE,
    "HYV4ForCausalLM": _SPARSE,
    "KimiK3LinearForCausalLM": _KDA,
    "JetNemotronForCausalLM": _CLASS,
    "SolarForCausalLM": _CLASS,
    "IQuestQ1ForCausalLM": "its attention needs FlashAttention 3",
    "BailingMoeV2_5ForCausalLM": "its rotary positions: on a CPU SGLang has DeepSeek's only",
    "DeepseekVL2ForCausalLM": "its vision tower is the package timm's",
    "VoxtralForConditionalGeneration": "its tokens are the package mistral_common's",
    "MiMoV2ForCausalLM": "the attention of this engine knows no sinks",
    "Mamba2ForCausalLM": "SGLang's sizes for a CPU divide a number of attention heads, which it has not",
    "MiniMaxM3SparseForConditionalGeneration": "SGLang's sizes for a CPU want its vision configuration as an"
    " object, and it is a dictionary",
    "Gemma3nForCausalLM": "SGLang's sizes for a CPU take one width of MLP, and the family has one by layer",
}
UNFINISHED = "the tiny configuration lacks something that the class wants"
