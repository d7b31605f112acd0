"""Two stages of every network, small enough for tests of whole programs; 32-pixel images give 8 x 8
and 4 x 4 maps.
"""

from pathlib import Path
from typing import Any

from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.run_folder import export_run

SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    "esvit_swin": {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
    "esvit_vil": {
        "patch_sizes": [4, 2],
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "num_heads": [1, 2],
        "sparse_stages": [True, False],
        "num_global_tokens": [1, 0],
        "window_size": 4,
    },
    "esvit_cvt": {
        "patch_sizes": [7, 3],
        "patch_strides": [4, 2],
        "patch_padding": [2, 1],
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": [4, 4],
        "mlp_ratio": [4.0, 4.0],
        "qkv_kernel_sizes": [3, 3],
        "qkv_bias": [True, True],
    },
}

# A stage of ViL drops its global tokens at its end: how they attended to each other in its last
# block has no effect.
WITHOUT_EFFECT = "global_to_global_bias"


def export_small_run(model_type: str, output: Path) -> None:
    """Write what a pretraining run of a small network leaves, without the run."""
    recipe = load_recipe(
        {
            "data": {"dataset": "unused"},
            "model": {
                "name": model_type,
                "config": SMALL_NETWORKS[model_type] | {"image_size": 32},
            },
            "heads": {"num_prototypes": 16, "hidden_dim": 8, "bottleneck_dim": 4},
            "run": {"output_dir": output},
        }
    )
    parts = build_parts(recipe)
    export_run(recipe, parts.teacher, parts.centers, steps=0, total_batch=1, metrics={})
