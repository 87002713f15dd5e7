"""The yardstick: an interpolated Kneser-Ney trigram model over the same tokens.

Counts come from the training split. The three absolute discounts, and whether documents count by
their training weight or once, are chosen on the validation split; the test split is read once.

    python trigram.py --tokens build/train/tokens --out build/train/trigram.json
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np


class Table:
    """Counts of n-grams, each n-gram packed into one integer, found by binary search."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray) -> None:
        self.keys, self.counts = keys, counts

    @classmethod
    def count(cls, keys: np.ndarray, weights: np.ndarray | None = None) -> "Table":
        unique, inverse = np.unique(keys, return_inverse=True)
        return cls(unique, np.bincount(inverse, weights=weights, minlength=len(unique)))

    def __getitem__(self, keys: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.counts[place], 0.0)


class Trigram:
    """Interpolated Kneser-Ney of order three over `vocabulary` tokens.

    p(w | u v) = max(c(uvw) - d3, 0) / c(uv) + λ(uv) · p(w | v), and likewise below with
    continuation counts N1+(·vw) and N1+(·w) in place of c; λ gives back exactly what the discounts
    took. The unigram level is mixed with the uniform distribution.
    """

    def __init__(self, tokens: np.ndarray, weights: np.ndarray, vocabulary: int) -> None:
        """Counts the stream `tokens` [N]; `weights` [N] says how often each position counts."""
        self.v = v = vocabulary
        t = tokens.astype(np.int64)
        three = Table.count((t[:-2] * v + t[1:-1]) * v + t[2:], weights[2:].astype(float))
        two = Table.count(three.keys % (v * v))  # N1+(· v w)
        one = Table.count(two.keys % v)  # N1+(· w)
        self.three, self.two, self.one = three, two, one
        # Totals and number of distinct continuations of each context.
        self.total3 = Table.count(three.keys // v, three.counts)
        self.types3 = Table.count(three.keys // v)
        self.total2 = Table.count(two.keys // v, two.counts)
        self.types2 = Table.count(two.keys // v)
        self.total1 = float(one.counts.sum())

    def parts(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The counts that the probability of each token needs: one array [N - 2] a name."""
        t = tokens.astype(np.int64)
        u, v, w = t[:-2], t[1:-1], t[2:]
        uv = u * self.v + v
        return {
            "c3": self.three[uv * self.v + w], "t3": self.total3[uv], "k3": self.types3[uv],
            "c2": self.two[v * self.v + w], "t2": self.total2[v], "k2": self.types2[v],
            "c1": self.one[w],
        }  # fmt: skip

    def probabilities(self, p: dict[str, np.ndarray], discounts: tuple) -> np.ndarray:
        """p(w | u v) for every position of `parts`' result."""
        d1, d2, d3 = discounts
        spare = d1 * len(self.one.keys) / self.total1
        q = np.maximum(p["c1"] - d1, 0) / self.total1 + spare / self.v
        for c, t, k, d in (("c2", "t2", "k2", d2), ("c3", "t3", "k3", d3)):
            seen = p[t] > 0
            total = np.where(seen, p[t], 1.0)
            # Discounting at most the smallest count keeps what is given back equal to what is
            # taken: every count is at least one.
            mixed = np.maximum(p[c] - d, 0) / total + d * p[k] / total * q
            q = np.where(seen, mixed, q)
        return q

    def perplexity(self, p: dict[str, np.ndarray], discounts: tuple) -> float:
        return math.exp(-np.log(self.probabilities(p, discounts)).mean())


def load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [N] and their documents' training weights [N] of one split."""
    tokens = np.load(folder / f"{split}.npy")
    documents = json.loads((folder / f"{split}.json").read_text())
    return tokens, np.concatenate([np.full(d["tokens"], d["weight"]) for d in documents])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=Path, default=Path("build/train/tokens"))
    parser.add_argument("--out", type=Path, default=Path("build/train/trigram.json"))
    arguments = parser.parse_args()
    vocabulary = len(json.loads((arguments.tokens / "tokenizer.json").read_text())["model"]["vocab"])
    tokens, weights = load(arguments.tokens, "train")
    validation, _ = load(arguments.tokens, "validation")
    test, _ = load(arguments.tokens, "test")

    best = (math.inf, None, None, None)
    for use, w in (("once", np.ones_like(weights)), ("by weight", weights)):
        model = Trigram(tokens, w, vocabulary)
        parts = model.parts(validation)
        for discounts in itertools.product((0.5, 0.9), (0.4, 0.6, 0.75, 0.9), (0.4, 0.6, 0.75, 0.9)):
            found = model.perplexity(parts, discounts)
            if found < best[0]:
                best = (found, use, discounts, model)
    found, use, discounts, model = best

    # The model is a distribution: over all next tokens of some contexts it sums to one.
    context = test[:2]
    row = np.array([[*context, w] for w in range(vocabulary)])
    p = [model.probabilities(model.parts(r), discounts)[0] for r in row]
    assert abs(sum(p) - 1) < 1e-9, sum(p)

    result = {"smoothing": "interpolated Kneser-Ney", "documents_counted": use,
              "discounts": discounts, "validation_perplexity": found,
              "test_perplexity": model.perplexity(model.parts(test), discounts)}  # fmt: skip
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
