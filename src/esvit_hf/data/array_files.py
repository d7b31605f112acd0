"""Files of images that Pillow does not read, or not as they are: NumPy arrays, DICOM, and TIFF of
many bands or of more than 8 bits.
"""

import io
from importlib.util import find_spec

import numpy as np

__all__ = ["ARRAY_ENDINGS", "read_array"]

ARRAY_ENDINGS = frozenset({".npy", ".dcm"})
"""Endings of files that are read here alone."""

_NUMPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DICOM, _DICOM_PLACE = b"DICM", 128
# Pillow reads TIFF files of at most so many bands, if they are of 8 bits.
_PILLOW_BANDS = 4


def read_array(content: bytes, *, tiff: bool = True) -> np.ndarray | None:
    """Read the pixels of a file that holds an array.

    Args:
        content: of the file.
        tiff: read TIFF files that Pillow would not read as they are.

    Returns:
        (H, W), (H, W, channels) or (channels, H, W); None if Pillow should read the file.

    Raises:
        ValueError: a package is missing, or the file is damaged.
    """
    if content.startswith(_NUMPY):
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        return array
    if content[_DICOM_PLACE:].startswith(_DICOM):
        return _read_dicom(content)
    if tiff and content.startswith(_TIFF) and find_spec("tifffile") is not None:
        return _read_tiff(content)
    return None


def _read_tiff(content: bytes) -> np.ndarray | None:
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        is_usual = page.bitspersample <= 8 and page.samplesperpixel <= _PILLOW_BANDS
        if is_usual and len(file.pages) == 1:
            return None
        array: np.ndarray = file.asarray()
        return array


def _read_dicom(content: bytes) -> np.ndarray:
    """Pixels in the units of the modality, such as Hounsfield units; white is large."""
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut
    except ImportError as error:
        raise ValueError("DICOM needs pydicom: pip install 'esvit-hf[dicom]'") from error
    data = dcmread(io.BytesIO(content))
    frames = int(data.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"the DICOM file holds {frames} frames: write each one as a file")
    stored: np.ndarray = data.pixel_array
    if data.PhotometricInterpretation == "MONOCHROME1":
        # Here large numbers are black; all that the bits allow are turned around.
        signed = int(data.PixelRepresentation)
        stored = (-1 if signed else 2 ** int(data.BitsStored) - 1) - stored.astype(np.int32)
    values: np.ndarray = apply_modality_lut(stored, data)
    return values
