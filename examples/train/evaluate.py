"""Measures a trained model and puts together what `models/` ships: weights, tokenizer, model card.

    python evaluate.py --run build/train/run --out models/austen-moe-8m

Everything is computed in float32 from the bf16 weights that are shipped, through transformers with
the hand-written activation of model.py. Perplexity is over windows of 512 tokens that each begin
with `<s>`, so the model sees at most 512 tokens of context; the trigram sees the text in one piece.
"""

import argparse
import json
import shutil
from pathlib import Path

import model as architecture
import numpy as np
import torch
from tokenizers import Tokenizer
from tokens import encode
from train import perplexity

WINDOW = 512
HELD_OUT_BYTES = 300_000
SLICE = 16  # windows of heldout.txt that the tests and the demonstration measure again


def held_out_text(text: str) -> str:
    """The paragraphs that fit into HELD_OUT_BYTES."""
    head = text.encode()[:HELD_OUT_BYTES]
    return head[: head.rindex(b"\n") + 1].decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("build/train/corpus"))
    parser.add_argument("--tokens", type=Path, default=Path("build/train/tokens"))
    parser.add_argument("--trigram", type=Path, default=Path("build/train/trigram.json"))
    parser.add_argument("--run", type=Path, default=Path("build/train/run"))
    parser.add_argument("--device", default="one NVIDIA H100")
    parser.add_argument("--out", type=Path, default=Path("models/austen-moe-8m"))
    a = parser.parse_args()
    out: Path = a.out
    out.mkdir(parents=True, exist_ok=True)
    for source, name in ((a.run, "model.safetensors"), (a.run, "config.json"),
                         (a.tokens, "tokenizer.json"), (a.tokens, "tokenizer_config.json")):  # fmt: skip
        shutil.copyfile(source / name, out / name)
        (out / name).chmod(0o644)
    (out / "generation_config.json").write_text(json.dumps(
        {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "do_sample": True,
         "temperature": 0.8, "top_k": 40}, indent=2) + "\n")  # fmt: skip

    manifest = json.loads((a.corpus / "manifest.json").read_text())
    test = next(d for d in manifest if d["split"] == "test")
    text = held_out_text((a.corpus / f"{test['name']}.txt").read_text(encoding="utf-8"))
    (out / "heldout.txt").write_text(text, encoding="utf-8")

    # The two measured texts, cut to whole windows so that each number has one definition.
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    whole = np.load(a.tokens / "test.npy").astype(np.int64)
    held = encode(tokenizer, text)[:-1].astype(np.int64)
    whole, held = (t[: len(t) // WINDOW * WINDOW] for t in (whole, held))
    texts = {"test": whole, "held": held, "slice": held[: SLICE * WINDOW]}
    model = architecture.load(out)
    beta = model.config.activation_params["beta"]
    found = {}
    for activation, value in (("right", beta), ("silu", 1.0)):
        architecture.set_activation(model, architecture.Swish(value))
        for name, t in texts.items():
            found[f"{name}_{activation}"] = perplexity(model, torch.from_numpy(t), WINDOW, torch.float32)
            print(f"{name}_{activation}: {found[f'{name}_{activation}']:.4f}", flush=True)

    from trigram import Trigram, load

    chosen = json.loads(a.trigram.read_text())
    tokens, weights = load(a.tokens, "train")
    if chosen["documents_counted"] == "once":
        weights = np.ones_like(weights)
    trigram = Trigram(tokens, weights, model.config.vocab_size)
    for name, t in texts.items():
        found[f"{name}_trigram"] = trigram.perplexity(trigram.parts(t), chosen["discounts"])

    import transformers

    metrics = json.loads((a.run / "metrics.json").read_text())
    c = model.config
    facts = {
        **found, "name": out.name, "beta": beta, "window": WINDOW, "slice": SLICE,
        "silu_ratio": found["test_silu"] / found["test_right"],
        "held_silu_ratio": found["held_silu"] / found["held_right"],
        "trigram_ratio": found["test_right"] / found["test_trigram"],
        "test_tokens": len(whole), "held_tokens": len(held), "held_bytes": len(text.encode()),
        "test_title": test["title"], "parameters": metrics["parameters"],
        "layers": c.num_hidden_layers, "hidden": c.hidden_size, "experts": c.num_local_experts,
        "intermediate": c.intermediate_size, "top_k": c.num_experts_per_tok,
        "vocabulary": c.vocab_size, "positions": c.max_position_embeddings,
        "size": (out / "model.safetensors").stat().st_size / 1e6,
        "seconds": metrics["seconds"], "device": a.device,
        "tokens": metrics["best"]["tokens"] / 1e6, "transformers": transformers.__version__,
    }  # fmt: skip
    card = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    rows = []
    for d in manifest:
        split = d["split"] + (f", {d['weight']} times an epoch" if d["weight"] > 1 else "")
        package = f"`{d['package']}` {d['version']}"
        rows.append(f"| {d['title']} | {package} | {split} | {d['characters']:,} | {d['licence']} |")
    (out / "README.md").write_text(card.format(documents="\n".join(rows), **facts))
    (out / "evaluation.json").write_text(
        json.dumps({**facts, "trigram": chosen, "training": metrics}, indent=1) + "\n"
    )
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
