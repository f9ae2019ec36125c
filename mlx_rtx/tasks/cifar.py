"""CIFAR-10 in greyscale: reading, conversion and checking of its 60,000 images of 32 × 32 pixels.

A grey level is floor(255.5 g) with g = (0.2989 R + 0.5870 G + 0.1140 B) / 255, as TensorFlow converts 8-bit images.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import sha256
from mlx_rtx.tasks.sources import download, kept, locate

import numpy as np

HUB = "uoft-cs/cifar10"
FILE = "cifar10_gray.npz"
PARQUET = "**/{}-*.parquet"  # in a copy of the hub's repository
INSTEAD = f"give a copy of {HUB} or an .npz file of grey images with --data"
COUNTS = {"train": 50_000, "test": 10_000}
CLASSES, PIXELS = 10, 1024
LABELS = {  # sha256 of the labels as bytes, in the official order
    "train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
GREY = {"train": 122.364, "test": 123.138}  # mean grey level


class Images(NamedTuple):
    """Grey images (n, 1024) and their classes (n,), both uint8."""

    pixels: np.ndarray
    labels: np.ndarray


def load(data: str | None) -> tuple[dict[str, Images], Path]:
    """Return the checked splits ``train`` and ``test``, and the file or folder they were read from.

    Args:
        data: an ``.npz`` file of ``{train,test}_{images,labels}``, a folder with parquet files as on the
            hub, or a folder that contains either; None for MLX_RTX_DATA or the hub.

    Raises:
        UserError: the data is missing, or is not CIFAR-10.
    """
    path = locate(data, FILE, PARQUET.format("train"))
    if path is None:
        path = kept(FILE, partial(_write_npz, make=lambda: _convert(download(f"{HUB} from the hub", INSTEAD, HUB))))
    if path.suffix != ".parquet":
        splits = _read_npz(path)
    else:  # the conversion of a local copy is cached as well, and repeated when its files change
        folder = path.parent
        files = sorted((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
        mark = sha256(repr(files).encode())[:12]
        splits = _read_npz(kept(f"cifar10_gray-{mark}.npz", partial(_write_npz, make=lambda: _read_parquet(folder))))
    for name, images in splits.items():
        _check(name, images, path)
    return splits, path


def grey(rgb: np.ndarray) -> np.ndarray:
    """Convert 8-bit colours (…, 3) to grey levels (…,), in float32 as TensorFlow does."""
    levels = (rgb.astype(np.float32) * np.float32(1 / 255)) @ np.array([0.2989, 0.5870, 0.1140], np.float32)
    return np.clip(levels * np.float32(255.5), 0, 255).astype(np.uint8)


def _convert(splits: Any) -> dict[str, Images]:
    """Convert the hub's data set (columns ``img``, ``label``)."""
    import datasets

    converted = {}
    for name in COUNTS:
        rows = splits[name].cast_column("img", datasets.Image())
        parts = [
            np.stack([grey(np.asarray(image.convert("RGB"))).reshape(-1) for image in part["img"]])
            for part in rows.iter(batch_size=1000)
        ]
        converted[name] = Images(np.concatenate(parts), np.array(rows["label"], np.uint8))
    return converted


def _read_parquet(folder: Path) -> dict[str, Images]:
    files = {name: sorted(str(file) for file in folder.glob(f"{name}-*.parquet")) for name in COUNTS}
    for name, found in files.items():
        require(bool(found), f"--data {folder}: holds no {name}-*.parquet; {INSTEAD}")
    splits = download(f"--data {folder}", INSTEAD, "parquet", data_files=files)
    require({"img", "label"} <= set(splits["train"].column_names), f"--data {folder}: no columns img, label; {INSTEAD}")
    return _convert(splits)


def _write_npz(path: Path, make: Callable[[], dict[str, Images]]) -> None:
    arrays: dict[str, Any] = {}
    for name, images in make().items():
        _check(name, images, Path(HUB))
        arrays |= {f"{name}_images": images.pixels, f"{name}_labels": images.labels}
    np.savez_compressed(path, **arrays)


def _read_npz(path: Path) -> dict[str, Images]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: Images(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in COUNTS}
    except Exception as error:  # NumPy and zipfile raise many types
        raise UserError(
            f"{path}: truncated, or without train_images, train_labels, test_images, test_labels ({error}); {INSTEAD}"
        ) from None


def check_values(name: str, images: Images | None, source: Path | str) -> None:
    """Raise UserError unless all pixels are grey levels and all labels classes: both are used as indices."""
    require(images is not None, f"{source}: has no {name} images; {INSTEAD}")
    pixels, labels = map(np.asarray, images or ())
    kinds = {str(array.dtype) for array in (pixels, labels)}
    require(kinds == {"uint8"}, f"{source}: {name} arrays are {' and '.join(sorted(kinds))}, not 8-bit; {INSTEAD}")
    fits = labels.ndim == 1 and labels.size > 0 and pixels.shape == (labels.size, PIXELS)
    require(
        fits, f"{source}: {name} images have shape {pixels.shape}, labels {labels.shape}; must be (n, {PIXELS}), (n,)"
    )
    require(labels.max() < CLASSES, f"{source}: a label of {name} is {labels.max()}; must lie in 0 … {CLASSES - 1}")


def _check(name: str, images: Images, path: Path) -> None:
    """Raise UserError unless the images are those of CIFAR-10."""
    count, pixels, labels = COUNTS[name], *images
    expected = ((count, PIXELS), (count,))
    found = (pixels.shape, labels.shape)
    require(found == expected, f"{path}: {name} images and labels have shapes {found}, not {expected}; {INSTEAD}")
    check_values(name, images, path)
    per_class = np.bincount(labels, minlength=CLASSES)
    require(
        set(per_class) == {count // CLASSES},
        f"{path}: {name} labels per class are {per_class.tolist()}, "
        f"not {count // CLASSES} for each of {CLASSES} classes; {INSTEAD}",
    )
    require(sha256(labels) == LABELS[name], f"{path}: {name} labels are not in CIFAR-10's order; {INSTEAD}")
    mean = float(pixels.mean())
    require(
        abs(mean - GREY[name]) < 0.1,
        f"{path}: mean grey level of {name} is {mean:.2f}, not {GREY[name]:.2f}: a different conversion; {INSTEAD}",
    )
