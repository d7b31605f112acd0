"""Load a network from the Hub and compute the feature of an image: `python
examples/load_from_hub.py NAME/MODEL IMAGE`.

This needs transformers alone: the network's code comes with the repository.
"""

import argparse
import json

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel


def main() -> None:
    """Print the shapes of an image's features as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="NAME/MODEL on the Hub, or a folder")
    parser.add_argument("image", help="image file")
    parser.add_argument(
        "--revision", help="commit whose code you have read: it cannot change afterwards"
    )
    words = parser.parse_args()
    pinned = {"revision": words.revision, "trust_remote_code": True}
    processor = AutoImageProcessor.from_pretrained(words.model, **pinned)
    model = AutoModel.from_pretrained(words.model, **pinned).eval()
    with torch.no_grad():
        outputs = model(**processor(Image.open(words.image), return_tensors="pt"))
    shapes = {
        "feature": list(outputs.pooler_output.shape),
        "regions": list(outputs.last_hidden_state.shape),
    }
    print(json.dumps({"class": type(model).__name__, "module": type(model).__module__, **shapes}))


if __name__ == "__main__":
    main()
