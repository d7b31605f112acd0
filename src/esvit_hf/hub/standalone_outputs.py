"""A program, not a module: load a model folder, run it on one fixed image, save pixels and outputs.

`fresh_process` runs its text in a new Python, with the package or without it; so nothing of the
package is imported.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification


def main(folder: str, output: str) -> None:
    """Compute what the folder's model says about a striped image, and save it.

    Args:
        folder: model folder.
        output: safetensors file to write.
    """
    side = 96
    image = Image.frombytes(
        "RGB", (side, side), bytes(7 * number % 256 for number in range(3 * side * side))
    )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    classifies = any("ForImageClassification" in name for name in config.architectures or ())
    auto_class = AutoModelForImageClassification if classifies else AutoModel
    model, report = auto_class.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = model.eval()(pixel_values=pixels.to(model.dtype), return_dict=True)
    # Some networks of transformers, saved without a pooler, get a random one when loaded.
    random = {"pooler_output"} if any("pooler" in key for key in report["missing_keys"]) else set()
    tensors = {
        name: value.contiguous()
        for name, value in outputs.items()
        if isinstance(value, torch.Tensor) and name not in random
    }
    save_file(
        {"pixel_values": pixels, **tensors},
        Path(output),
        metadata={"module": type(model).__module__},
    )


if __name__ == "__main__":
    if sys.argv[1] == "without":
        # What Python itself notes about a module that must not be found.
        sys.modules["esvit_hf"] = None  # type: ignore[assignment]
    else:
        __import__("esvit_hf")
    main(*sys.argv[2:])
