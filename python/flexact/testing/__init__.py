"""Cases, references and recipes that tests of every backend compare with.

Part of the package so that other programs can check their own builds on their own hardware.
"""

from flexact.testing.moe import MoeCase, errors, random_case, recipe, reference

__all__ = ["MoeCase", "errors", "random_case", "recipe", "reference"]
