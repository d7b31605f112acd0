"""The page from a model's name, as the command line opens it."""

import importlib.resources
import os
from pathlib import Path

from esvit_hf.data.sources import load_image_source
from esvit_hf.features.store import FeatureStore, default_features_folder

__all__ = ["show_page"]


def show_page(
    model: str,
    *,
    dataset: str | None = None,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    features_folder: Path | None = None,
) -> None:
    """Open a page to play with a vision model: similar regions, attention and nearest images of a
    clicked point.

    Images of the data set, or of Fashion-MNIST without one, are offered as examples; others can be
    uploaded. Ctrl-C stops the page.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        dataset: images to search for neighbors: Hub name, folder of parquet files or images, or a
            parquet file.
        split: which images of the data set, for example train, test or train[:1000].
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        host: address to listen at; 0.0.0.0 opens the page to other machines.
        port: port to listen at.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        features_folder: where features of the data set are kept; ~/.cache/esvit_hf/features if not
            given.

    Raises:
        ValueError: the model, the data or a setting does not work, or gradio is not installed; the
            message names the remedy.
    """
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
        source = load_image_source(
            dataset,
            split=split,
            config_name=config_name,
            image_column=image_column,
            label_column=label_column,
        )
    store = FeatureStore(
        features_folder or default_features_folder(),
        model,
        processor=processor,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    shipped = importlib.resources.files(__package__) / "examples.parquet"
    explorer = Explorer(store, source or load_image_source(str(shipped)), source)
    print(f"the page is at http://{host}:{port}; Ctrl-C stops it", flush=True)
    serve_page(build_page(explorer, Path(model).name), host=host, port=port)
