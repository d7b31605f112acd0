"""Pictures from a model's name and image files, as command lines draw them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.decoding import UndecodableImageError, decode_image
from esvit_hf.data.sources import load_image_source
from esvit_hf.features.extraction import load_image_processor
from esvit_hf.features.input_format import apply_processor, read_input_format, read_input_frame
from esvit_hf.features.neighbors import nearest_images, view_feature
from esvit_hf.features.store import FeatureStore, default_features_folder
from esvit_hf.figures.attention import plot_attention
from esvit_hf.figures.correspondence import plot_region_pairs
from esvit_hf.figures.look import check_picture_path
from esvit_hf.figures.regions import plot_neighbors
from esvit_hf.regions.attention import query_attention
from esvit_hf.regions.correspondence import find_region_pairs

__all__ = ["save_attention", "save_correspondence", "save_neighbors"]


def save_correspondence(
    model: str,
    first: Path,
    second: Path,
    *,
    output: Path,
    count: int = 10,
    layer: int | None = None,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Join the regions of two images that look most alike to a vision model, by lines.

    The picture shows what the network sees of the images. The last line of the output is a JSON
    object with the centers of the regions in pixels of the image files, and the cosine
    similarities.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        first: image file.
        second: image file.
        output: picture to write, ending in .png or .pdf.
        count: number of lines.
        layer: hidden state whose regions are compared, 0 for the patch embeddings, -1 for the last;
            the regions behind the last norm if not given.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.

    Returns:
        The file and the pairs.

    Raises:
        ValueError: the model, its image processor, an image or a setting does not work; the message
            names the remedy.
    """
    check_picture_path(output)
    images = [_read_image(path) for path in (first, second)]
    backbone, image_processor = _load(model, processor, revision, trust_remote_code)
    inputs = [apply_processor(image_processor, [image]) for image in images]
    pairs = find_region_pairs(
        backbone,
        *(pixel_values.to(backbone.model.device) for pixel_values in inputs),
        count=count,
        layer=layer,
    )
    input_format = read_input_format(image_processor)
    shown = [input_format.restore(pixel_values)[0] for pixel_values in inputs]
    rows = pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist()
    plot_region_pairs(shown[0], shown[1], *rows).save(output)
    frames = [read_input_frame(image_processor, image.size) for image in images]
    return {
        "output": str(output),
        "pairs": [
            {
                "first": frames[0].to_image(start),
                "second": frames[1].to_image(end),
                "similarity": round(similarity, 4),
            }
            for start, end, similarity in zip(*rows, strict=True)
        ],
    }


def save_attention(
    model: str,
    image: Path,
    *,
    query: str,
    output: Path,
    layer: int = -1,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Draw where each attention head of a vision model looks from a point of an image.

    The picture shows what the network sees of the image.

    Args:
        model: Hub name or folder of any vision model with attention that AutoModel loads.
        image: image file.
        query: the point as x,y in pixels of the image file, counted from its upper left corner.
        output: picture to write, ending in .png or .pdf.
        layer: number of the block, from 0; -1 for the last.
        processor: Hub name or folder whose image processor prepares the image; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.

    Returns:
        The file, and for each head the share of its attention that went to regions of the image.

    Raises:
        ValueError: the model, its image processor, the image, the point or a setting does not work;
            the message names the remedy.
    """
    check_picture_path(output)
    x, y = _read_point(query)
    picture = _read_image(image)
    if not (0 <= x < picture.width and 0 <= y < picture.height):
        raise ValueError(
            f"--query {query} lies outside {image}, which has {picture.width} x {picture.height} "
            f"pixels"
        )
    backbone, image_processor = _load(model, processor, revision, trust_remote_code)
    frame = read_input_frame(image_processor, picture.size)
    point = frame.to_input((x, y))
    if point is None:
        left, top = frame.to_image((0, 0))
        right, bottom = frame.to_image(frame.size)
        raise ValueError(
            f"--query {query} lies outside what the image processor keeps of {image}: choose x "
            f"from {left:.0f} to {right:.0f} and y from {top:.0f} to {bottom:.0f}"
        )
    pixel_values = apply_processor(image_processor, [picture])
    attention = query_attention(backbone, pixel_values.to(backbone.model.device), point, layer)
    shown = read_input_format(image_processor).restore(pixel_values)[0]
    plot_attention(shown, attention.maps, attention.stride, point).save(output)
    shares = attention.maps.sum(dim=(1, 2)).tolist()
    return {"output": str(output), "attention_on_image": [round(share, 4) for share in shares]}


def save_neighbors(
    model: str,
    image: Path,
    dataset: str,
    *,
    output: Path,
    count: int = 9,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    features_folder: Path | None = None,
) -> dict[str, Any]:
    """Draw the images of a data set whose view features are most similar to those of an image.

    Features of the data set are computed once and kept. The last line of the output is a JSON
    object with the places of the images in the data set, their classes and the cosine similarities.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        image: image file.
        dataset: images to search: Hub name, folder of parquet files or images, or a parquet file.
        output: picture to write, ending in .png or .pdf.
        count: number of neighbors.
        split: which images of the data set, for example train, test or train[:1000].
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once.
        num_workers: processes that decode images.
        features_folder: where features of the data set are kept; ~/.cache/esvit_hf/features if not
            given.

    Returns:
        The file and the neighbors.

    Raises:
        ValueError: the model, its image processor, the data, the image or a setting does not work;
            the message names the remedy.
    """
    check_picture_path(output)
    picture = _read_image(image)
    source = load_image_source(
        dataset,
        split=split,
        config_name=config_name,
        image_column=image_column,
        label_column=label_column,
    )
    if not 1 <= count <= len(source):
        raise ValueError(
            f"--count is {count}: choose 1 to {len(source)}, the number of images in {dataset}"
        )
    store = FeatureStore(
        features_folder or default_features_folder(),
        model,
        processor=processor,
        revision=revision,
        trust_remote_code=trust_remote_code,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    features = store.features(source)
    neighbors = nearest_images(
        view_feature(store.backbone, store.processor, picture), source, features, count
    )
    plot_neighbors(
        picture,
        [found.image for found in neighbors],
        [found.label for found in neighbors],
        [found.cosine for found in neighbors],
    ).save(output)
    return {
        "output": str(output),
        "neighbors": [
            {"index": found.index, "class": found.class_name, "cosine": round(found.cosine, 4)}
            for found in neighbors
        ],
    }


def _load(
    model: str, processor: str | None, revision: str | None, trust_remote_code: bool
) -> tuple[RegionBackbone, Callable[..., Any]]:
    backbone = load_backbone(model, revision=revision, trust_remote_code=trust_remote_code)
    image_processor = load_image_processor(
        processor or model,
        revision=None if processor else revision,
        trust_remote_code=trust_remote_code,
    )
    return backbone.to(Accelerator().device), image_processor


def _read_image(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"there is no image file {str(path)!r}: give the path of one")
    try:
        return decode_image(path)
    except UndecodableImageError as error:
        raise ValueError(
            f"{path} cannot be used ({error}): give a whole image of usual size"
        ) from error


def _read_point(query: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in query.split(","))
    except ValueError as error:
        raise ValueError(
            f"--query is {query!r}: give a point as x,y in pixels, for example 120,80"
        ) from error
    return x, y
