"""Trains the model within a time limit, keeping the weights that are best on the validation split.

    python train.py --tokens build/train/tokens --out build/train/run --seconds 90

The learning rate follows the fraction of the time that has passed, so the schedule ends where the
time does. Every evaluation also runs the same weights with plain SiLU: the gap between the two is
what a server that ignores `activation_params` costs.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import model as architecture
import numpy as np
import torch
from torch import nn


def windows(tokens: torch.Tensor, begin: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts a stream [N] into inputs and targets [W, length]; each window begins with `begin`."""
    count = len(tokens) // length
    targets = tokens[: count * length].view(count, length)
    inputs = torch.cat([torch.full_like(targets[:, :1], begin), targets[:, :-1]], dim=1)
    return inputs, targets


@torch.no_grad()
def perplexity(model: nn.Module, tokens: torch.Tensor, length: int, precision: torch.dtype) -> float:
    """exp of the mean negative log-probability over windows that each begin with `<s>`."""
    model.eval()
    inputs, targets = windows(tokens, model.config.bos_token_id, length)
    total = 0.0
    for i, t in zip(inputs.split(32), targets.split(32), strict=True):
        with torch.autocast(tokens.device.type, precision, enabled=precision != torch.float32):
            logits = model(i, use_cache=False).logits
        total += nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), t.flatten(), reduction="sum"
        ).item()
    model.train()
    return math.exp(total / targets.numel())


def batches(
    tokens: torch.Tensor, documents: list[dict], length: int, size: int, seed: int
) -> Iterator[torch.Tensor]:
    """Yields windows [size, length] for ever: each epoch reads every document `weight` times, each
    time cut at another place, in random order."""
    random = np.random.default_rng(seed)
    while True:
        starts = [
            np.arange(d["start"] + random.integers(length), d["start"] + d["tokens"] - length, length)
            for d in documents
            for _ in range(d["weight"])
            if d["tokens"] > 2 * length
        ]
        order = random.permutation(np.concatenate(starts))
        offsets = torch.arange(length, device=tokens.device)
        for first in range(0, len(order) - size, size):
            rows = torch.from_numpy(order[first : first + size]).to(tokens.device)
            yield tokens[rows[:, None] + offsets]


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=rate, betas=(0.9, 0.95), fused=next(model.parameters()).is_cuda,
    )  # fmt: skip


def train(arguments: argparse.Namespace, beta: float, seconds: float, out: Path) -> dict:
    """One run; writes the best weights and metrics.json to `out` as it goes. Returns the metrics."""
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    folder = arguments.tokens

    def read(split: str) -> torch.Tensor:
        return torch.from_numpy(np.load(folder / f"{split}.npy").astype(np.int64)).to(device)

    tokens, validation = read("train"), read("validation")[: arguments.validation_tokens]
    documents = json.loads((folder / "train.json").read_text())
    length, begin = arguments.length, 0

    changes = {"num_hidden_layers": arguments.layers} if arguments.layers else {}
    model = architecture.new_model(beta, arguments.dropout, **changes).to(device).train()
    router_logits: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, __, y: router_logits.append(y[0]))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"beta {beta}: {parameters:,} parameters on {device}", flush=True)
    optimizer = optimizer_of(model, arguments.rate)
    right, wrong = architecture.Swish(beta), architecture.Swish(1.0)

    def evaluate() -> tuple[float, float]:
        good = perplexity(model, validation, length, torch.bfloat16)
        architecture.set_activation(model, wrong)
        bad = perplexity(model, validation, length, torch.bfloat16)
        architecture.set_activation(model, right)
        return good, bad

    metrics: dict = {"beta": beta, "parameters": parameters, "seconds": seconds, "history": []}
    best = math.inf
    started = time.monotonic()
    next_evaluation, losses = 0.0, []
    source = batches(tokens, documents, length, arguments.batch, arguments.seed)
    for step in range(arguments.steps):
        elapsed = time.monotonic() - started
        progress = min(1.0, max(elapsed / seconds, step / arguments.steps))
        last = progress >= 1.0 or step == arguments.steps - 1
        if last or (progress >= next_evaluation and step > 0):
            next_evaluation = progress + arguments.evaluate_every
            good, bad = evaluate()
            loss = torch.stack(losses[-50:]).mean().item() if losses else float("nan")
            entry = {"step": step, "seconds": round(elapsed, 1), "train_loss": round(loss, 4),
                     "validation": round(good, 3), "validation_silu": round(bad, 3),
                     "tokens": step * arguments.batch * length}  # fmt: skip
            metrics["history"].append(entry)
            print(json.dumps(entry), flush=True)
            if good < best:
                best, metrics["best"] = good, entry
                architecture.save(model, out)
            (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
            losses.clear()
        if last:
            break
        rate = arguments.rate * min(1.0, (step + 1) / arguments.warmup)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        targets = next(source)
        inputs = torch.cat([torch.full_like(targets[:, :1], begin), targets[:, :-1]], dim=1)
        with torch.autocast(device.type, torch.bfloat16):
            router_logits.clear()
            logits = model(inputs, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            total = loss + model.config.router_aux_loss_coef * balance(router_logits)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return metrics


def balance(router_logits: list[torch.Tensor]) -> torch.Tensor:
    """Mean over layers of the Switch Transformer's loss; 1 when the load is even."""
    losses = []
    for logits in router_logits:
        p = logits.float().softmax(-1)
        chosen = torch.zeros_like(p).scatter(1, p.topk(2, dim=-1).indices, 0.5)
        losses.append((chosen.mean(0) * p.mean(0)).sum() * p.shape[-1])
    return torch.stack(losses).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=Path, default=Path("build/train/tokens"))
    parser.add_argument("--out", type=Path, default=Path("build/train/run"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--beta", type=float, default=1.7)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--steps", type=int, default=1_000_000, help="also ends the run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--layers", type=int, default=0, help="fewer layers, for a quick try")
    parser.add_argument("--evaluate-every", type=float, default=0.05)
    parser.add_argument("--validation-tokens", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments, arguments.beta, arguments.seconds, arguments.out)


if __name__ == "__main__":
    main()
