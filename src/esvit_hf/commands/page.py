"""The page from a model's name, as the command line opens it."""

import importlib.resources
import os
from pathlib import Path

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.options import Batches, DataSplit, FeatureCache, ModelSource

__all__ = ["show_page"]


@flat_arguments
def show_page(
    model: ModelSource,
    *,
    dataset: str | Path | None = None,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    cache: FeatureCache,
) -> None:
    """Open a page to play with a vision model: similar regions, attention and nearest images of a
    clicked point.

    Images of the data set, or of Fashion-MNIST without one, are offered as examples; others can be
    uploaded. Ctrl-C stops the page.

    Args:
        dataset: images to search for neighbors: Hub name, folder of parquet files or images, or a
            parquet file.
        host: address to listen at; 0.0.0.0 opens the page to other machines.
        port: port to listen at.

    Raises:
        ValueError: the model, the data or a setting does not work, or gradio is not installed; the
            message names the remedy.
    """
    from accelerate import Accelerator

    from esvit_hf.data.sources import load_image_source
    from esvit_hf.features.loading import load_images, open_store

    # Read by gradio when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from esvit_hf.page.app import build_page, serve_page
        from esvit_hf.page.explorer import Explorer
    except ImportError as error:
        raise ValueError(
            f"the page needs gradio and matplotlib ({error}): pip install 'esvit-hf[demo]'"
        ) from error
    if not 1 <= port <= 65535:
        raise ValueError(f"--port is {port}: choose one from 1 to 65535, for example 7860")
    source = None
    if dataset is not None:
        source = load_images(DataSplit(dataset, config_name, image_column, label_column, split))
    store = open_store(model, Batches(), cache, Accelerator())
    shipped = importlib.resources.files("esvit_hf.page") / "examples.parquet"
    explorer = Explorer(store, source or load_image_source(str(shipped)), source)
    print(f"the page is at http://{host}:{port}; Ctrl-C stops it", flush=True)
    serve_page(build_page(explorer, Path(model.model).name), host=host, port=port)
