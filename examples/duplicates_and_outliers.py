"""Duplicates and outliers of a folder of images: `python examples/duplicates_and_outliers.py
photos.parquet photos --output look`.

`esvit features MODEL photos --output photos.parquet` writes the features.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from esvit_hf.figures.neighbors import plot_image_rows


def main() -> None:
    """Print what was found, and write duplicates.png and outliers.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", help="parquet file")
    parser.add_argument("folder", type=Path, help="folder of the images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--similarity", type=float, default=0.95, help="least of duplicates")
    parser.add_argument("--count", type=int, default=4, help="pairs and outliers to show")
    words = parser.parse_args()
    rows = load_dataset("parquet", data_files=words.features, split="train").with_format("numpy")
    names, features = rows["file"][:], rows["feature"][:]
    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(features)
    # Without rows to look up, scikit-learn leaves each image out of its own neighbors.
    distances, places = search.kneighbors()
    nearest = {place: float(1 - distance[0]) for place, distance in enumerate(distances)}
    pairs = {tuple(sorted((place, int(places[place, 0])))): nearest[place] for place in nearest}
    found = [pair for pair in pairs if pairs[pair] >= words.similarity]
    found = sorted(found, key=lambda pair: -pairs[pair])[: words.count]
    outliers = np.argsort([nearest[place] for place in nearest])[: words.count].tolist()
    print("duplicates")
    for first, second in found:
        print(f"  {pairs[first, second]:.3f}  {names[first]}  {names[second]}")
    print("outliers")
    for place in outliers:
        print(f"  {nearest[place]:.3f}  {names[place]}")
    shown = {*outliers, *(place for pair in found for place in pair)}
    images = {place: Image.open(words.folder / names[place]).convert("RGB") for place in shown}
    if found:
        sheet = [[(images[place], names[place]) for place in pair] for pair in found]
        plot_image_rows(sheet).save(words.output / "duplicates.png")
    sheet = [[(images[place], f"{nearest[place]:.2f}") for place in outliers]]
    plot_image_rows(sheet).save(words.output / "outliers.png")


if __name__ == "__main__":
    main()
