"""Fits the polynomials of src/cpu/vector_math.hpp and prints their fp32 coefficients.

Each fit is a weighted minimax polynomial (Lawson's iteration; the weight makes it the relative error
of the function that uses it). Coefficients are rounded to fp32 one at a time, lowest order first, and
the rest is fitted again, so that rounding costs little. Needs mpmath and
numpy. Run: python scripts/fit_vector_math.py
"""

import struct
from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.prec = 160


def to_fp32(value: mp.mpf) -> float:
    """The nearest fp32 number, as a Python float."""
    return struct.unpack("f", struct.pack("f", float(value)))[0]


def fit(name: str, f: Callable, low: float, high: float, count: int, weight: Callable) -> None:
    """Prints fp32 coefficients of a `count`-term polynomial and its weighted error after rounding."""
    middle, half = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
    nodes = [middle - half * mp.cos(mp.pi * (2 * i + 1) / 800) for i in range(400)]
    x = np.array([float(v) for v in nodes])
    exact = [f(v) for v in nodes]
    w = np.array([float(weight(v)) for v in nodes])
    fixed: list[float] = []
    lawson = np.ones_like(x)
    for done in range(count):
        rest = np.array(
            [
                float(e - mp.polyval([mp.mpf(c) for c in fixed[::-1]] or [0], v))
                for v, e in zip(nodes, exact, strict=True)
            ]
        )
        basis = np.stack([x**k for k in range(done, count)], axis=1)
        # Lawson's iteration turns least squares into minimax.
        for _ in range(60 if done == 0 else 20):
            scale = w * np.sqrt(lawson)
            solution = np.linalg.lstsq(basis * scale[:, None], rest * scale, rcond=None)[0]
            error = np.abs(w * (rest - basis @ solution))
            lawson = lawson * (error / error.max() + 1e-3)
            lawson /= lawson.mean()
        fixed.append(to_fp32(solution[0]))
    worst = max(
        abs(weight(v) * (e - mp.polyval([mp.mpf(c) for c in fixed[::-1]], v)))
        for v, e in zip(nodes, exact, strict=True)
    )
    print(f"{name} on [{float(low):.6g}, {float(high):.6g}], weighted error {float(worst):.2e}")
    print("  " + ", ".join(f"{c:.9e}f" for c in fixed))


def main() -> None:
    ln2 = mp.log(2)
    # e^r = 1 + r + r^2 P(r); the weight makes it the relative error of e^r - 1.
    fit(
        "exp P",
        lambda r: (mp.exp(r) - 1 - r) / r**2 if r else mp.mpf(1) / 2,
        -ln2 / 2,
        ln2 / 2,
        5,
        lambda r: abs(r**2 / mp.expm1(r)) if r else mp.mpf(0) + mp.mpf(2) ** -60,
    )
    # log(1+f) = f - f^2/2 + f^3 P(f), f = m - 1 with m in [3/4, 3/2).
    fit(
        "log P",
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3 if f else mp.mpf(1) / 3,
        mp.mpf(-1) / 4,
        mp.mpf(1) / 2,
        9,
        lambda f: abs(f**3 / mp.log1p(f)) if f else mp.mpf(2) ** -60,
    )
    # log1p(t) = t + t^2 P(t) on [0, 1].
    fit(
        "log1p01 P",
        lambda t: (mp.log1p(t) - t) / t**2 if t else -mp.mpf(1) / 2,
        0,
        1,
        10,
        lambda t: t**2 / mp.log1p(t) if t else mp.mpf(2) ** -60,
    )
    # erf(x) = x + x P(x^2) for |x| < 1.
    fit(
        "erf small P(x^2)",
        lambda s: mp.erf(mp.sqrt(s)) / mp.sqrt(s) - 1 if s else 2 / mp.sqrt(mp.pi) - 1,
        0,
        1,
        7,
        lambda s: mp.sqrt(s) / mp.erf(mp.sqrt(s)) if s else mp.mpf(1),
    )
    # erfc(x) = exp(-P(x)) for x in [1, 4]: absolute error of erf matters.
    fit("erf large P(x)", lambda x: -mp.log(mp.erfc(x)), mp.mpf("0.95"), 4, 8, lambda x: mp.erfc(x))

    # The normal tail Q(t) = exp(-t^2/2) s P(s - c) with s = 1/(1 + 0.3125 t), for t in [0, 14.5].
    # The center is one near 0.6 whose P(0) happens to be almost an fp32 number.
    center = mp.mpf("0.603515625")

    def tail(z: mp.mpf) -> mp.mpf:
        s = z + center
        t = (1 / s - 1) / mp.mpf("0.3125")
        return mp.exp(t * t / 2) * mp.erfc(t / mp.sqrt(2)) / 2 / s

    low = 1 / (1 + mp.mpf("0.3125") * mp.mpf("14.5")) - center
    fit("normal tail P", tail, low, 1 - center, 10, lambda z: 1 / tail(z))


if __name__ == "__main__":
    main()
