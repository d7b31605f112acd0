"""The page from a model's name, as the command line opens it."""

from pathlib import Path

from esvit_hf.data.sources import load_image_source
from esvit_hf.features.store import FeatureStore, default_features_folder

__all__ = ["show_page"]


def show_page(
    model: str,
    *,
    compare: str | None = None,
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
    """Open a page to play with a vision model: similar regions, matches, attention and nearest
    images, on the photographs themselves.

    A dozen photographs come with the page, images of the data set are offered beside them, others
    can be uploaded. Ctrl-C stops the page.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        compare: Hub name or folder of a second model to show beside the first. The first one with
            random weights is always offered.
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
        ValueError: the model, the data or a setting does not work, or starlette is missing; the
            message names the remedy.
    """
    try:
        from esvit_hf.page.explorer import Explorer
        from esvit_hf.page.network import page_networks
        from esvit_hf.page.server import serve_page
    except ImportError as error:
        raise ValueError(
            f"the page needs starlette and uvicorn ({error}): pip install 'esvit-hf[demo]'"
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
    folder = features_folder or default_features_folder()
    stores = [
        FeatureStore(
            folder,
            model,
            processor=processor,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    ]
    if compare is not None:
        stores.append(FeatureStore(folder, compare, trust_remote_code=trust_remote_code))
    serve_page(Explorer(page_networks(stores), source), host=host, port=port)
