"""Places of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FASHION_MNIST = ROOT / "src" / "esvit_hf" / "recipes" / "fashion_mnist"
GOLDENS = ROOT / "tests" / "goldens"
