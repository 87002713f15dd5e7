"""The model: transformers' Mixtral with a hand-written swish, and its experts as two matrix products.

transformers reads `hidden_act: "swish"` as plain SiLU and ignores `activation_params`, so the
activation module is put in by hand. flexact is not used here: what it serves later is compared
with this file.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralExperts


class Swish(nn.Module):
    """x * sigmoid(beta * x); beta = 1 is SiLU."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.beta * x)


class DenseExperts(MixtralExperts):
    """All experts on all tokens, as two matrix products; the router's zeros drop the rest.

    Four times the arithmetic of top-2 of 8, and at this size much faster than a loop.
    """

    dropout = 0.0

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [N, H], top_k_index and top_k_weights [N, k] → [N, H]."""
        experts, width = self.num_experts, self.intermediate_dim
        gate_up = nn.functional.linear(hidden_states, self.gate_up_proj.flatten(0, 1))
        gate, up = gate_up.view(-1, experts, 2 * width).chunk(2, dim=-1)
        weights = gate.new_zeros(len(gate), experts).scatter(1, top_k_index, top_k_weights.to(gate))
        middle = (self.act_fn(gate) * up * weights.unsqueeze(-1)).flatten(1)
        down = self.down_proj.transpose(1, 2).reshape(experts * width, self.hidden_dim)
        return nn.functional.dropout(middle @ down.to(middle), self.dropout, self.training)


def config_of(beta: float, **changes: int) -> MixtralConfig:
    """The architecture: about 8 million parameters, 8 experts of which a token uses 2."""
    values = dict(
        vocab_size=4096, hidden_size=256, intermediate_size=128, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=False, router_aux_loss_coef=0.01, sliding_window=None,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.02,
        hidden_act="swish",
    )  # fmt: skip
    return MixtralConfig(**{**values, **changes}, activation_params={"beta": beta})


def set_activation(model: MixtralForCausalLM, activation: nn.Module) -> None:
    for layer in model.model.layers:
        layer.mlp.experts.act_fn = activation


def new_model(beta: float, dropout: float = 0.0, **changes: int) -> MixtralForCausalLM:
    """A fresh model with swish(beta) and the experts above."""
    model = MixtralForCausalLM(config_of(beta, **changes))
    for layer in model.model.layers:
        layer.mlp.experts.__class__ = DenseExperts
        layer.mlp.experts.dropout = dropout
        if dropout:
            layer.self_attn.o_proj.register_forward_hook(
                lambda module, _, y: nn.functional.dropout(y, dropout, module.training)
            )
    set_activation(model, Swish(beta))
    return model


# The published Mixtral names, which every reader of such checkpoints knows.


def published_weights(model: MixtralForCausalLM) -> dict[str, torch.Tensor]:
    """The state in Mixtral's published layout: one tensor an expert and projection, in bf16."""
    out = {}
    for name, value in model.state_dict().items():
        value = value.detach().to("cpu", torch.bfloat16)
        prefix, found, rest = name.partition(".mlp.")
        if not found:
            out[name] = value.contiguous()
        elif rest == "gate.weight":
            out[f"{prefix}.block_sparse_moe.gate.weight"] = value.contiguous()
        else:
            for expert, matrix in enumerate(value):
                stem = f"{prefix}.block_sparse_moe.experts.{expert}"
                if rest == "experts.gate_up_proj":
                    gate, up = matrix.chunk(2)
                    out[f"{stem}.w1.weight"] = gate.contiguous()
                    out[f"{stem}.w3.weight"] = up.contiguous()
                elif rest == "experts.down_proj":
                    out[f"{stem}.w2.weight"] = matrix.contiguous()
                else:
                    raise ValueError(f"unexpected weight {name}")
    return out


def save(model: MixtralForCausalLM, folder: Path) -> None:
    """Writes model.safetensors (bf16) and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(published_weights(model), folder / "model.safetensors", {"format": "pt"})
    config = model.config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "num_local_experts",
            "num_experts_per_tok", "max_position_embeddings", "rms_norm_eps",
            "tie_word_embeddings", "sliding_window", "router_aux_loss_coef", "bos_token_id",
            "eos_token_id", "pad_token_id", "hidden_act", "activation_params")  # fmt: skip
    content = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
               **{key: config[key] for key in kept}, "rope_theta": 10000.0,
               "torch_dtype": "bfloat16"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def load(folder: Path, beta: float | None = None) -> MixtralForCausalLM:
    """Loads a saved model in float32 through transformers, with swish(beta) put in by hand.

    Args:
        folder: Where config.json and model.safetensors lie.
        beta: The activation's parameter; None takes the one that config.json names.
    """
    model = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if beta is None:
        beta = json.loads((folder / "config.json").read_text())["activation_params"]["beta"]
    set_activation(model, Swish(beta))
    return model


__all__ = ["Swish", "load", "load_file", "new_model", "published_weights", "save", "set_activation"]
