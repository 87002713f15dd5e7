"""Families that transformers does not have: the keys of their published config.json, at tiny sizes."""

from __future__ import annotations

from typing import Any

_DENSE = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_MOE = {
    **_DENSE,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": 16,
    "use_cache": True,
}
# Stands for a key that the class has a default for and the published file lacks.
REMOVED = "(removed)"
YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_MLA = {
    "q_lora_rank": 32,
    # SGLang's Triton kernels know 512 + 64 and 256 + 32 as the two parts of a latent key.
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "rope_scaling": YARN,
    "rope_parameters": {**YARN, "rope_theta": 10000.0},
}
_DEEPSEEK = {
    **_DENSE,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "aux_loss_alpha": 0.001,
    "attention_bias": False,
}


def _remote(model_type: str, base: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A type whose published checkpoint brings its own configuration class along."""
    return {**base, "model_type": model_type, "auto_map": True, **keys}


def _known(model_type: str, base: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A type whose configuration class transformers or SGLang has."""
    return {**base, "model_type": model_type, **keys}


_BAILING = {"use_bias": False, "use_qkv_bias": False, "embedding_dropout": 0.0}
_CHATGLM = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "ffn_hidden_size": 96,
    "fp32_residual_connection": False,
    "hidden_size": 64,
    "kv_channels": 16,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "original_rope": True,
    "padded_vocab_size": 384,
    "vocab_size": 384,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 512,
    "use_cache": True,
    "tie_word_embeddings": False,
    "eos_token_id": [1, 3, 4],
    "pad_token_id": 2,
}

ONLY_SGLANG: dict[str, dict[str, Any]] = {
    # SGLang knows the 7B model, whose positions are rotary, by its hidden size.
    "BaichuanForCausalLM": _remote(
        "baichuan",
        _DENSE,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=32,
        model_max_length=512,
    ),
    "BailingMoeForCausalLM": _remote("bailing_moe", _MOE, **_BAILING),
    "BailingMoEForCausalLM": _remote("bailing_moe", _MOE, **_BAILING),
    "BailingMoeV2ForCausalLM": _remote(
        "bailing_moe_v2",
        _MOE,
        **_BAILING,
        use_qk_norm=True,
        partial_rotary_factor=0.5,
        score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        routed_scaling_factor=2.5,
        router_dtype="fp32",
    ),
    "BailingMoeV2_5ForCausalLM": _known(
        "bailing_hybrid",
        {**_MOE, **_MLA},
        **_BAILING,
        layer_group_size=2,
        group_norm_size=1,
        linear_silu=False,
        use_qk_norm=True,
        score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        partial_rotary_factor=0.5,
    ),
    "BailingMoeV3ForCausalLM": _known("bailing_hybrid", _MOE, **_BAILING),
    "ChatGLMModel": _known("chatglm", _CHATGLM),
    "DeepseekForCausalLM": _remote("deepseek", _DEEPSEEK),
    "Ernie4_5_ForCausalLM": _known("ernie4_5", _DENSE, use_bias=False, head_dim=16),
    "ExaoneForCausalLM": _known(
        "exaone",
        {k: v for k, v in _DENSE.items() if k not in ("hidden_act", "num_hidden_layers")},
        activation_function="silu",
        num_layers=2,
        layer_norm_epsilon=1e-5,
        head_dim=16,
    ),
    "ExaoneMoEForCausalLM": _remote(
        "exaone_moe",
        _MOE,
        is_moe_layer=[False, True],
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        routed_scaling_factor=2.5,
        layer_types=["full_attention", "full_attention"],
        sliding_window=128,
        sliding_window_pattern="LG",
    ),
    "GigaChat35ForCausalLM": _known(
        "gigachat3_5", {**_DEEPSEEK, **_MLA}, scoring_func="sigmoid", swiglu_limit=REMOVED
    ),
    "GraniteSWAForCausalLM": _remote(
        "granite_swa",
        _DENSE,
        layer_rope_theta=[10000.0, 10000.0],
        embedding_multiplier=1.0,
        logits_scaling=1.0,
        residual_multiplier=1.0,
        attention_multiplier=0.25,
        attention_bias=False,
        mlp_bias=False,
        sliding_window=128,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "GraniteMoeSWAForCausalLM": _remote(
        "granitemoe_swa",
        _DENSE,
        num_local_experts=4,
        num_experts_per_tok=2,
        embedding_multiplier=1.0,
        logits_scaling=1.0,
        residual_multiplier=1.0,
        attention_multiplier=0.25,
        attention_bias=False,
        shared_intermediate_size=48,
        sliding_window=128,
        layer_types=["full_attention", "sliding_attention"],
        layer_rope_theta=[10000.0, 10000.0],
    ),
    "Grok1ForCausalLM": _remote(
        "grok-1",
        {k: v for k, v in _DENSE.items() if k != "hidden_act"},
        num_local_experts=4,
        num_experts_per_tok=2,
        embedding_multiplier_scale=8.0,
        output_multiplier_scale=0.5,
        attn_output_multiplier=0.088,
        head_dim=16,
    ),
    "InternLM2ForCausalLM": _remote("internlm2", _DENSE, bias=False, rope_scaling=None),
    "InternLM2ForRewardModel": _remote("internlm2", _DENSE, bias=False, rope_scaling=None),
    "InternLM3ForCausalLM": _remote(
        "internlm3", _DENSE, bias=False, qkv_bias=False, head_dim=16, rope_scaling=None
    ),
    "IQuestCoderForCausalLM": _remote(
        "iquestcoder", _DENSE, head_dim=16, attention_bias=False, mlp_bias=False
    ),
    "IQuestLoopCoderForCausalLM": _remote(
        "iquestloopcoder", _DENSE, head_dim=16, loop_num=2, loop_window_size=64, attention_bias=False
    ),
    "IQuestQ1ForCausalLM": _known(
        "iquest_q1",
        _MOE,
        use_hybrid_layers=False,
        rotary_dim=16,
        dense_intermediate_size=96,
        intermediate_size=48,
        enable_sink_attention=False,  # needs FlashAttention 3
    ),
    "JetNemotronForCausalLM": _known("jet_nemotron", _DENSE),
    "KimiLinearForCausalLM": _known(
        "kimi_linear",
        {**_DEEPSEEK, **_MLA},
        num_experts=4,
        num_experts_per_token=2,
        num_shared_experts=1,
        moe_layer_freq=1,
        linear_attn_config={
            "full_attn_layers": [2],
            "kda_layers": [1],
            "head_dim": 16,
            "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
    ),
    "LLaDA2MoeModelLM": _remote(
        "llada2_moe",
        _MOE,
        **_BAILING,
        use_qk_norm=True,
        score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        routed_scaling_factor=2.5,
        partial_rotary_factor=0.5,
        router_dtype="fp32",
    ),
    "LongcatFlashForCausalLM": _known(
        "longcat_flash",
        _MLA,
        rope_scaling={**YARN, "type": "deepseek_yarn", "rope_type": "deepseek_yarn", "rope_theta": 1e4},
        rope_parameters=REMOVED,
        mla_scale_q_lora=True,
        mla_scale_kv_lora=True,
    ),
    "MiMoForCausalLM": _remote("mimo", _DENSE, head_dim=16, attention_bias=True, num_nextn_predict_layers=1),
    "MiMoV2FlashForCausalLM": _remote(
        "mimo_v2_flash",
        _DENSE,
        layernorm_epsilon=1e-6,
        head_dim=16,
        v_head_dim=16,
        swa_head_dim=16,
        swa_v_head_dim=16,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_rope_theta=10000.0,
        hybrid_layer_pattern=[0, 1],
        moe_layer_freq=[0, 1],
        n_routed_experts=4,
        n_shared_experts=None,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        norm_topk_prob=True,
        routed_scaling_factor=None,
        n_group=1,
        topk_group=1,
        sliding_window=128,
        sliding_window_size=128,
        partial_rotary_factor=0.5,
        attention_bias=False,
        add_swa_attention_sink_bias=False,
        add_full_attention_sink_bias=False,
        attention_value_scale=1.0,
    ),
    "MiniCPMForCausalLM": _remote(
        "minicpm", _DENSE, scale_emb=12, dim_model_base=32, scale_depth=1.4, num_key_value_heads=4
    ),
    "MiniCPM3ForCausalLM": _remote(
        "minicpm3", {**_DENSE, **_MLA}, scale_emb=12, dim_model_base=32, scale_depth=1.4
    ),
    "NanbeigeForCausalLM": _known("nanbeige", _DENSE),
    "OrionForCausalLM": _remote("orion", _DENSE, num_key_value_heads=4),
    "PhiMoEForCausalLM": _known(
        "phimoe",
        _DENSE,
        num_local_experts=4,
        num_experts_per_tok=2,
        router_jitter_noise=0.01,
        input_jitter_noise=0.01,
        attention_bias=True,
        lm_head_bias=True,
        sliding_window=None,
        rope_scaling=None,
    ),
    "Phi3SmallForCausalLM": _remote(
        "phi3small",
        _DENSE,
        hidden_act="gegelu",
        gegelu_limit=20.0,
        ff_intermediate_size=96,
        layer_norm_epsilon=1e-5,
        mup_attn_multiplier=1.0,
        mup_embedding_multiplier=10.0,
        mup_use_scaling=True,
        mup_width_multiplier=8.0,
        rope_embedding_base=10000,
        rope_position_scale=1.0,
        dense_attention_every_n_layers=1,
        attention_bias=True,
        rope_scaling=None,
        ff_dim_multiplier=None,
        gegelu_pad_to_256=True,
        blocksparse_block_size=64,
        blocksparse_triton_kernel_block_size=64,
        blocksparse_num_local_blocks=16,
        blocksparse_vert_stride=8,
        blocksparse_homo_head_pattern=False,
    ),
    "QWenLMHeadModel": _remote(
        "qwen",
        {k: v for k, v in _DENSE.items() if k not in ("hidden_act", "num_key_value_heads")},
        intermediate_size=192,
        layer_norm_epsilon=1e-6,
        rotary_emb_base=10000,
        kv_channels=16,
        seq_length=512,
        no_bias=True,
    ),
    "SDARForCausalLM": _remote("sdar", _DENSE, head_dim=16, attention_bias=False),
    "SDARMoeForCausalLM": _remote(
        "sdar_moe",
        {k: v for k, v in _MOE.items() if k not in ("num_shared_experts", "first_k_dense_replace")},
        decoder_sparse_step=1,
        mlp_only_layers=[],
        attention_bias=False,
    ),
    "SarvamMoEForCausalLM": _remote("sarvam_moe", _MOE, **_BAILING, use_qk_norm=True),
    "SarvamMLAForCausalLM": _remote("sarvam_mla_moe", {**_MOE, **_MLA}, **_BAILING),
    "SolarForCausalLM": _remote(
        "solar",
        _DENSE,
        bskcn_1=[],
        bskcn_2=[],
        bskcn_3=[],
        bskcn_4=[],
        bskcn_tv=[0.9, 0.8, 0.7],
        head_dim=16,
        attention_bias=False,
        mlp_bias=False,
        sliding_window=128,
    ),
    "Spark2_5ForCausalLM": _known("spark2_5", _DENSE),
    "Step3p5ForCausalLM": _known(
        "step3p5",
        {k: v for k, v in _DENSE.items() if k != "hidden_act"},
        num_attention_groups=2,
        head_dim=16,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=128,
        attention_other_setting={
            "attention_type": "sliding_attention",
            "num_attention_heads": 4,
            "num_attention_groups": 2,
            "head_dim": 16,
        },
        use_head_wise_attn_gate=True,
        moe_num_experts=4,
        moe_top_k=2,
        moe_intermediate_size=48,
        share_expert_dim=48,
        share_expert_dims=48,
        moe_layers_enum="1",
        moe_router_activation="sigmoid",
        moe_router_scaling_factor=1.0,
        use_moe_router_bias=True,
        need_fp32_gate=True,
        norm_expert_weight=True,
        swiglu_limits=[0.0, 7.0],
        swiglu_limits_shared=[0.0, 16.0],
        partial_rotary_factors=[0.5, 1.0],
        rope_theta=[10000.0, 10000.0],
        yarn_only_types=["full_attention"],
    ),
    "TeleFLMForCausalLM": _remote(
        "TeleFLM",
        _DENSE,
        use_mup=True,
        mup_scale_factor=1.0,
        input_mult=1.0,
        output_mult=1.0,
        num_key_value_heads=4,
    ),
    "TorchNativeLlamaForCausalLM": _known("llama", _DENSE),
    "XverseForCausalLM": _remote("xverse", _DENSE, num_key_value_heads=4, max_tokenizer_truncation=512),
    "XverseMoeForCausalLM": _remote(
        "xverse_moe",
        _DENSE,
        num_experts=4,
        moe_top_k=2,
        num_shared_experts=1,
        norm_topk_prob=False,
        num_key_value_heads=4,
        output_router_logits=False,
        router_aux_loss_coef=0.01,
    ),
    "XllmForCausalLM": _remote("xllm", _MOE),
    "K2HorizonForCausalLM": _known("k2_horizon", _MOE),
    "ZayaForCausalLM": _known(
        "zaya", _DENSE, zaya_layers=["a", 4], ffn_hidden_size=96, zaya_mlp_expansion=32, zaya_use_mod=False
    ),
    "DeciLMForCausalLM": _remote(
        "nemotron-nas",
        _DENSE,
        head_dim=16,
        attention_bias=False,
        mlp_bias=False,
        block_configs=[
            {
                "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
                "ffn": {"ffn_mult": 1.5, "no_op": False, "replace_with_linear": False},
            }
        ]
        * 2,
        rope_scaling=None,
    ),
    "HYV4ForCausalLM": _known("hy_v4", _MOE, indexer_types=["full", "full"]),
    "LlamaEmbeddingModel": _known("llama", _DENSE),
    "LlamaForClassification": _known("llama", _DENSE, classification_out_size=2),
    "LlamaForSequenceClassificationWithNormal_Weights": _known("llama", _DENSE),
    "Qwen2ForRewardModel": _known("qwen2", _DENSE),
    "Qwen3ForRewardModel": _known("qwen3", _DENSE, head_dim=16),
    "Contriever": _known("bert", {}, position_embedding_type="absolute"),
    "NanbeigeForSequenceClassification": _known("nanbeige", _DENSE),
    "EmbeddingGemmaModel": _known("gemma3_text", {}),
}

# Carriers of a text model with images or sound whose configuration class SGLang brings along: its own
# defaults, at tiny sizes.
for _name, _type in {
    "BailingMM2NativeForConditionalGeneration": "bailingmm_moe_v2_lite",
    "BailingMMNativeForConditionalGeneration": "bailingmm_moe_v2_lite",
    "BailingMoeV3VLForConditionalGeneration": "bailing_moe_v3_vl",
    "DeepseekOCRForCausalLM": "deepseek-ocr",
    "DeepseekVL2ForCausalLM": "deepseek_vl_v2",
    "Dots3NoteForCausalLM": "dots3_note",
    "DotsOCRForCausalLM": "dots_ocr",
    "DotsVLMForCausalLM": "dots_vlm",
    "Glm5NextForConditionalGeneration": "glm5_next",
    "InternS1ForConditionalGeneration": "internvl_chat",
    "InternVLChatModel": "internvl_chat",
    "JetVLMForConditionalGeneration": "jet_vlm",
    "KimiK25ForConditionalGeneration": "kimi_k25",
    "KimiK3ForConditionalGeneration": "kimi_k3",
    "KimiVLForConditionalGeneration": "kimi_vl",
    "LocateAnythingForConditionalGeneration": "locateanything",
    "LightOnOCRForConditionalGeneration": "lighton_ocr",
    "MiniCPMSALAForCausalLM": "minicpm_sala",
    "MultiModalityCausalLM": "multi_modality",
    "NemotronHPuzzleForCausalLM": "nemotron_h_puzzle",
    "NemotronH_Nano_Omni_Reasoning_V3": "NemotronH_Nano_Omni_Reasoning_V3",
    "NemotronH_Nano_VL_V2": "NemotronH_Nano_VL_V2",
    "NemotronH_Omni_Reasoning_V3": "nemotron_h_omni",
    "PixtralForConditionalGeneration": "pixtral",
    "Qwen3ASRForConditionalGeneration": "qwen3_asr",
    "Step3VLForConditionalGeneration": "step3_vl",
    "Step3p7ForConditionalGeneration": "step3p7",
    "UnlimitedOCRForCausalLM": "unlimited_ocr",
    "Cosmos3ForConditionalGeneration": "cosmos3_omni",
    "Cosmos3EdgeForConditionalGeneration": "cosmos3_edge",
}.items():
    ONLY_SGLANG[_name] = _known(_type, {})

for _name in ("DeepseekVL2ForCausalLM", "DotsVLMForCausalLM", "DeepseekOCRForCausalLM"):
    ONLY_SGLANG[_name]["language_config"] = {
        **_DEEPSEEK,
        **_MLA,
        "architectures": ["DeepseekV2ForCausalLM"],
    }
for _name in ("KimiK25ForConditionalGeneration", "KimiVLForConditionalGeneration"):
    ONLY_SGLANG[_name]["text_config"] = {
        **_DEEPSEEK,
        **_MLA,
        "architectures": ["DeepseekV3ForCausalLM"],
        "scoring_func": "sigmoid",
    }
for _name in ("InternVLChatModel", "InternS1ForConditionalGeneration"):
    ONLY_SGLANG[_name]["llm_config"] = {
        **_DENSE,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
    }

# The first LLaVA's files have the keys of the text model at the top.
for _name, _type in {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
    "LlavaVidForCausalLM": "llama",
    "YiVLForCausalLM": "llama",
}.items():
    ONLY_SGLANG[_name] = _known(
        "llava", _DENSE, mm_hidden_size=64, text_config=_known(_type, _DENSE), image_token_index=300
    )

for _name in ("BailingMM2NativeForConditionalGeneration", "BailingMMNativeForConditionalGeneration"):
    ONLY_SGLANG[_name]["mrope_section"] = [1, 1, 2]
ONLY_SGLANG["BailingMoeV3VLForConditionalGeneration"]["mrope_section"] = [2, 3, 3]
ONLY_SGLANG["DotsVLMForCausalLM"] = _known("dots_vlm", {**_DEEPSEEK, **_MLA}, language_config=REMOVED)
ONLY_SGLANG["KimiK25ForConditionalGeneration"]["vision_config"] = {
    "vt_hidden_size": 64,
    "vt_intermediate_size": 96,
    "vt_num_attention_heads": 4,
    "vt_num_hidden_layers": 2,
}
ONLY_SGLANG["Step3VLForConditionalGeneration"]["text_config"] = {"pad_token_id": 2}
ONLY_SGLANG["InternVLChatModel"]["vision_config"] = {
    "norm_type": "layer_norm",
    "use_flash_attn": False,
    "image_size": 56,
}
ONLY_SGLANG["Step3p7ForConditionalGeneration"] |= {
    "text_config": ONLY_SGLANG["Step3p5ForCausalLM"],
    "vision_config": {"width": 64, "layers": 2, "heads": 4, "image_size": 56},
}

# Classes that another class's published keys also serve.
ONLY_SGLANG |= {
    "MiMoV2ForCausalLM": {**ONLY_SGLANG["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2"},
    # transformers' class drops keys that SGLang's reads.
    "MiniMaxM3SparseForCausalLM": _remote(
        "minimax_m3",
        _MOE,
        hidden_act="swigluoai",
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        intermediate_size=48,
        dense_intermediate_size=96,
        shared_intermediate_size=48,
        n_shared_experts=1,
        num_local_experts=4,
        moe_layer_freq=[0, 1],
        rotary_dim=8,
        scoring_func="sigmoid",
        use_routing_bias=True,
        use_qk_norm=True,
        qk_norm_type="per_head",
        sparse_attention_config={
            "sparse_attention_freq": [0, 0],
            "sparse_num_index_heads": 2,
            "sparse_index_dim": 16,
            "sparse_block_size": 16,
            "sparse_topk_blocks": 4,
            "sparse_init_block": 0,
            "sparse_local_block": 1,
        },
    ),
    "Grok1ModelForCausalLM": ONLY_SGLANG["Grok1ForCausalLM"],
    "KimiK3LinearForCausalLM": ONLY_SGLANG["KimiLinearForCausalLM"],
    "MistralLarge3ForCausalLM": _known("deepseek_v3", {**_DEEPSEEK, **_MLA}, scoring_func="softmax"),
    "QuantMixtralForCausalLM": _known("mixtral", _DENSE, num_local_experts=4, num_experts_per_tok=2),
    "TorchNativePhi3ForCausalLM": _known("phi3", _DENSE, attention_bias=False, mlp_bias=False),
    "TransformersForCausalLM": _known("llama", _DENSE),
    "TransformersMoEForCausalLM": _known("mixtral", _DENSE, num_local_experts=4, num_experts_per_tok=2),
    "TransformersEmbeddingModel": _known("llama", _DENSE),
    "TransformersForSequenceClassification": _known("llama", _DENSE),
    "TransformersMoEEmbeddingModel": _known("mixtral", _DENSE, num_local_experts=4, num_experts_per_tok=2),
    "TransformersMoEForSequenceClassification": _known(
        "mixtral", _DENSE, num_local_experts=4, num_experts_per_tok=2
    ),
    "Lfm2BidirectionalModel": _known(
        "lfm2", _DENSE, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
}
