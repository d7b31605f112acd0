"""Places of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FASHION_MNIST = EXAMPLES / "data" / "fashion_mnist"
GOLDENS = ROOT / "tests" / "goldens"
