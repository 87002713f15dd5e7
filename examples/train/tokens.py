"""Trains the BPE tokenizer on the training documents and encodes every split with it.

    python tokens.py --corpus build/train/corpus --out build/train/tokens

writes the tokenizer's files (tokenizer.json, tokenizer_config.json) and one array of uint16 token
ids a split; `train` is one array with the places where documents begin beside it (documents.json).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 4096
BEGIN, END = "<s>", "</s>"


def train_tokenizer(texts: list[Path]) -> Tokenizer:
    """Byte-level BPE, so that any text has an encoding; every encoding begins with `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in texts], trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
        special_tokens=[(BEGIN, begin)],
    )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Token ids [N] uint16 of one document, `</s>` at its end and no `<s>`."""
    ids: list[int] = []
    lines = text.splitlines(keepends=True)
    for block in range(0, len(lines), 256):  # a paragraph's end is always a token boundary
        ids += tokenizer.encode("".join(lines[block : block + 256]), add_special_tokens=False).ids
    return np.array([*ids, tokenizer.token_to_id(END)], dtype=np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("build/train/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/train/tokens"))
    arguments = parser.parse_args()
    corpus, out = arguments.corpus, arguments.out
    out.mkdir(parents=True, exist_ok=True)

    manifest = json.loads((corpus / "manifest.json").read_text())
    training = [corpus / f"{d['name']}.txt" for d in manifest if d["split"] == "train"]
    tokenizer = train_tokenizer(training)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN, "eos_token": END, "pad_token": END,
        "add_bos_token": True, "clean_up_tokenization_spaces": False, "model_max_length": 1024,
    }, indent=2) + "\n")  # fmt: skip

    for split in ("train", "validation", "test"):
        arrays, documents, position = [], [], 0
        for d in manifest:
            if d["split"] != split:
                continue
            ids = encode(tokenizer, (corpus / f"{d['name']}.txt").read_text(encoding="utf-8"))
            arrays.append(ids)
            documents.append({"name": d["name"], "start": position, "tokens": len(ids),
                              "weight": d["weight"], "characters": d["characters"]})  # fmt: skip
            position += len(ids)
        np.save(out / f"{split}.npy", np.concatenate(arrays))
        (out / f"{split}.json").write_text(json.dumps(documents, indent=1) + "\n")
        characters = sum(d["characters"] for d in documents)
        print(f"{split:10} {position:9,} tokens, {characters / position:.2f} characters a token")


if __name__ == "__main__":
    main()
