"""Files that hold arrays: NumPy, TIFF of many bands or bits, DICOM."""

import io
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from esvit_hf.data.decoding import UndecodableImageError, decode_image, decode_stored
from esvit_hf.data.sources import load_image_source


def values(*shape: int, kind: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, shape).astype(kind)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def dicom(stored: np.ndarray, **elements: object) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    described = {
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": stored.astype("<u2").tobytes(),
        **elements,
    }
    for name, value in described.items():
        setattr(data, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "int16"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3), (5, 6, 13), (13, 5, 6)])
def test_arrays_keep_their_values(kind: str, shape: tuple[int, ...]) -> None:
    array = values(*shape, kind=kind)
    found = decode_stored(npy(array))
    assert isinstance(found, np.ndarray) and found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 9, 13), {"planarconfig": "contig", "photometric": "minisblack"}),
        ((13, 8, 9), {"planarconfig": "separate", "photometric": "minisblack"}),
        ((6, 8, 9), {"photometric": "minisblack"}),
        ((8, 9, 3), {"photometric": "rgb"}),
        ((8, 9, 4), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        ((8, 9), {"bigtiff": True}),
    ],
)
def test_tiff_files_keep_bands_and_bits(shape: tuple[int, ...], options: dict[str, object]) -> None:
    array = values(*shape)
    found = decode_stored(tiff(array, **options))
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, array)


def test_usual_tiff_files_are_those_of_pillow() -> None:
    found = decode_stored(tiff(values(8, 9, 3, kind="uint8"), photometric="rgb"))
    assert isinstance(found, Image.Image) and found.mode == "RGB"


def test_dicom_is_in_the_units_of_its_modality() -> None:
    stored = values(4, 5)
    assert np.array_equal(np.asarray(decode_stored(dicom(stored))), stored)
    rescaled = dicom(stored, RescaleSlope="2", RescaleIntercept="-1024")
    assert np.array_equal(np.asarray(decode_stored(rescaled)), stored * 2.0 - 1024)
    negative = dicom(stored, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(np.asarray(decode_stored(negative)), 4095 - stored.astype(int))


def test_arrays_serve_networks_for_color_images() -> None:
    gray = values(4, 5)
    for content in (npy(gray), dicom(gray)):
        expected = np.rint(gray * (255 / 4095))
        assert np.array_equal(np.asarray(decode_image(content))[:, :, 0], expected)
    color = values(4, 5, 3, kind="uint8")
    assert np.array_equal(np.asarray(decode_image(npy(color))), color)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(values(4, 5))[:-3], "ValueError"),
        (npy(np.array([{"a": 1}], dtype=object)), "allow_pickle"),
        (npy(values(4)), r"shape \(4,\) is no image"),
        (tiff(values(40, 50, 13), photometric="minisblack")[:40000], "Error"),
        (dicom(values(4, 5))[:-9], "Error"),
        (dicom(values(4, 5), NumberOfFrames="2"), "holds 2 frames"),
        (npy(values(20, 20)), r"20 x 20 pixels are more than the limit of 399"),
    ],
    ids=["short", "objects", "vector", "short TIFF", "short DICOM", "frames", "large"],
)
def test_what_is_damaged_is_said(content: bytes, message: str) -> None:
    with pytest.raises(UndecodableImageError, match=message):
        decode_stored(content, max_image_pixels=399 if "399" in message else 10**6)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UndecodableImageError, match=r"pip install 'esvit-hf\[dicom\]'"):
        decode_stored(dicom(values(4, 5)))


def test_a_folder_of_arrays_is_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("sea", "land"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", values(4, 5, 6))
        (tmp_path / name / "2.dcm").write_bytes(dicom(values(4, 5)))
    source = load_image_source(str(tmp_path))
    assert (len(source), source.class_names) == (4, ["land", "sea"])
    assert np.array_equal(np.asarray(source.read_stored([2])[0]), values(4, 5, 6))
    Image.new("RGB", (4, 4)).save(tmp_path / "sea" / "photo.png")
    with pytest.warns(UserWarning, match=r"not taken for images: .*\.npy \(2\)"):
        assert len(load_image_source(str(tmp_path))) == 1
