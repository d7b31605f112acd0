"""The page from a model's name, as the command line opens it."""

from pathlib import Path

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.options import Batches, DataSplit, FeatureCache, ModelSource

__all__ = ["show_page"]


@flat_arguments
def show_page(
    model: ModelSource,
    *,
    compare: str | Path | None = None,
    dataset: str | Path | None = None,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_image_pixels: int = DataSplit.max_image_pixels,
    host: str = "127.0.0.1",
    port: int = 7860,
    cache: FeatureCache,
) -> None:
    """Open a page to play with a vision model: similar regions, matches, attention and nearest
    images, on the photographs themselves.

    A dozen photographs come with the page, images of the data set are offered beside them, others
    can be uploaded. Ctrl-C stops the page.

    Args:
        compare: Hub name or folder of a second model to show beside the first. The first one with
            random weights is always offered.
        dataset: images to search for neighbors: Hub name, folder of parquet files or images, or a
            parquet file.
        host: address to listen at; 0.0.0.0 opens the page to other machines.
        port: port to listen at.

    Raises:
        ValueError: the model, the data or a setting does not work, or starlette is missing; the
            message names the remedy.
    """
    from accelerate import Accelerator

    from esvit_hf.features.loading import load_images, open_store

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
    accelerator = Accelerator()
    stores = [open_store(model, Batches(), cache, accelerator)]
    if compare is not None:
        second = ModelSource(compare, trust_remote_code=model.trust_remote_code)
        stores.append(open_store(second, Batches(), cache, accelerator))
    source = None
    if dataset is not None:
        source = load_images(
            DataSplit(
                dataset, config_name, image_column, label_column, max_image_pixels, split=split
            )
        )
    serve_page(Explorer(page_networks(stores), source), host=host, port=port)
