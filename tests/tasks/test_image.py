"""Images: loading from every kind of source, checks, and batches, on a small synthetic data set."""

import io
import sys

from mlx_rtx import UserError
from mlx_rtx.support.files import sha256
from mlx_rtx.tasks import ImageTask, cifar

import datasets
import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

COUNTS = {"train": 100, "test": 20}


@pytest.fixture
def colours():
    """Return colour images and labels of a small data set."""
    generator = np.random.default_rng(0)
    return {
        name: (generator.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count, dtype=np.uint8) % 10)
        for name, count in COUNTS.items()
    }


@pytest.fixture(autouse=True)
def small(colours, monkeypatch, tmp_path):
    """Replace CIFAR-10 by the small data set, and use a temporary cache."""
    monkeypatch.setattr(cifar, "COUNTS", COUNTS)
    monkeypatch.setattr(cifar, "LABELS", {name: sha256(labels) for name, (_, labels) in colours.items()})
    monkeypatch.setattr(cifar, "GREY", {name: cifar.grey(rgb).mean() for name, (rgb, _) in colours.items()})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLX_RTX_DATA", raising=False)


def arrays(colours):
    return {
        key: value
        for name, (rgb, labels) in colours.items()
        for key, value in {f"{name}_images": cifar.grey(rgb).reshape(-1, 1024), f"{name}_labels": labels}.items()
    }


@pytest.fixture
def npz(colours, tmp_path):
    np.savez_compressed(tmp_path / "cifar10_gray.npz", **arrays(colours))
    return tmp_path / "cifar10_gray.npz"


@pytest.fixture
def hub(colours):
    """Return a small data set in the format of the hub's."""
    parts = {}
    for name, (rgb, labels) in colours.items():
        pictures = [{"bytes": png(picture), "path": None} for picture in rgb]
        table = datasets.Dataset.from_dict({"img": pictures, "label": labels.tolist()})
        parts[name] = table.cast_column("img", datasets.Image())
    return datasets.DatasetDict(parts)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def same(data, colours):
    """Assert that ``data`` is the small data set."""
    for split, name, rows in (("validation", "train", slice(90, 100)), ("test", "test", slice(0, 20))):
        rgb, labels = (array[rows] for array in colours[name])
        read = list(data.held_out(split, None, 7, mx.random.key(0)))
        tokens = np.concatenate([np.array(part.read_tokens(0, part.length)) for part in read])
        targets = np.concatenate([np.array(part.targets) for part in read])
        assert np.array_equal(tokens, cifar.grey(rgb).reshape(-1, 1024))
        assert np.array_equal(targets[:, 0], labels)


def test_grey_is_rounded_as_documented():
    """Compared with the formula in float64, except within float32 rounding error of a step."""
    rgb = np.random.default_rng(1).integers(0, 256, (5000, 3), np.uint8)
    exact = rgb @ np.array([0.2989, 0.5870, 0.1140]) / 255 * 255.5
    clear = np.abs(exact - np.round(exact)) > 1e-4
    assert np.array_equal(cifar.grey(rgb)[clear], np.floor(exact[clear]).astype(np.uint8))
    assert cifar.grey(np.array([[0, 0, 0], [255, 255, 255]], np.uint8)).tolist() == [0, 255]


def test_from_an_npz(npz, colours):
    same(ImageTask(data=str(npz)).load(), colours)


def test_from_a_folder_with_an_npz(npz, colours, monkeypatch):
    same(ImageTask(data=str(npz.parent)).load(), colours)
    monkeypatch.setenv("MLX_RTX_DATA", str(npz.parent))
    same(ImageTask().load(), colours)


def test_from_a_copy_of_the_hubs(hub, colours, tmp_path, monkeypatch):
    folder = tmp_path / "copy" / "plain_text"
    folder.mkdir(parents=True)
    for name, table in hub.items():
        table.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    same(ImageTask(data=str(tmp_path / "copy")).load(), colours)
    monkeypatch.setattr(cifar, "_convert", None)
    same(ImageTask(data=str(tmp_path / "copy")).load(), colours)  # the conversion is cached
    for file in folder.iterdir():
        file.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"--data .*plain_text: could not be loaded"):
        ImageTask(data=str(tmp_path / "copy")).load()


def test_from_the_hub_once(hub, colours, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: asked.append(arguments) or hub)
    for _ in range(2):
        same(ImageTask().load(), colours)
    assert asked == [("uoft-cs/cifar10",)]
    assert [file.name for file in (tmp_path / "cache" / "mlx_rtx").iterdir()] == ["cifar10_gray.npz"]


def test_no_network(monkeypatch, tmp_path):
    def unreachable(*_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"uoft-cs/cifar10 from the hub: could not .*no route to host.*with --data"):
        ImageTask().load()
    assert not list((tmp_path / "cache" / "mlx_rtx").iterdir())


def test_no_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets .*mlx-rtx\[data\].*--data"):
        ImageTask().load()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("test_labels"), "test_labels"),
        (
            lambda a: a.update(train_images=a["train_images"][:-1]),
            r"train images and labels have shapes \(\(99",
        ),
        (lambda a: a.update(train_images=a["train_images"].reshape(-1, 32, 32)), "have shapes"),
        (lambda a: a.update(test_images=a["test_images"] / 255), "not 8-bit"),
        (lambda a: a.update(test_labels=a["test_labels"] // 2), "test labels per class are"),
        (lambda a: a.update(train_labels=np.roll(a["train_labels"], 1)), "not in CIFAR-10's order"),
        (lambda a: a.update(train_images=a["train_images"] // 2), "mean grey level of train"),
    ],
    ids=["missing", "short", "shape", "type", "counts", "order", "grey"],
)
def test_data_other_than_cifar_is_refused(colours, tmp_path, change, words):
    wrong = arrays(colours)
    change(wrong)
    np.savez(tmp_path / "wrong.npz", **wrong)
    with pytest.raises(UserError, match=words):
        ImageTask(data=str(tmp_path / "wrong.npz")).load()


def test_invalid_image_files(npz, tmp_path, monkeypatch):
    whole = npz.read_bytes()
    npz.write_bytes(whole[:5000])
    with pytest.raises(UserError, match="truncated"):
        ImageTask(data=str(npz)).load()
    newer = bytearray(whole)
    newer[whole.rindex(b"PK\x01\x02") + 6] = 210  # the zip version that its directory requires
    npz.write_bytes(newer)
    with pytest.raises(UserError, match=r"truncated, or without train_images, .*zip file version"):
        ImageTask(data=str(npz)).load()
    with pytest.raises(UserError, match="--data nowhere: not found"):
        ImageTask(data="nowhere").load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no cifar10_gray\.npz and no"):
        ImageTask(data=str(tmp_path / "empty")).load()
    monkeypatch.setenv("MLX_RTX_DATA", "nowhere")
    with pytest.raises(UserError, match="MLX_RTX_DATA=nowhere: not found"):
        ImageTask().load()


@pytest.mark.parametrize(("habit", "train", "validation"), [("held-out", 90, 10), ("test", 100, 20)])
def test_training_and_held_out_images(npz, colours, habit, train, validation):
    data = ImageTask(data=str(npz), validate_on=habit).load()
    tokens, targets = (np.array(a) for a in data.draw(mx.random.key(1), 3000))
    assert tokens.shape == (3000, 1024)
    assert targets.shape == (3000, 1)
    known = {row.tobytes(): label for row, label in zip(*arrays_of(colours, train), strict=True)}
    drawn = {row.astype(np.uint8).tobytes() for row in tokens}
    assert drawn == known.keys()  # exactly the training images
    assert all(known[row.astype(np.uint8).tobytes()] == label for row, (label,) in zip(tokens, targets, strict=True))
    held_out = list(data.held_out("validation", None, 64, mx.random.key(0)))
    assert sum(len(part.targets) for part in held_out) == validation
    assert sum(len(part.targets) for part in data.held_out("test", 5, 3, mx.random.key(0))) == 5
    again, _ = data.draw(mx.random.key(1), 3000)
    assert np.array_equal(tokens, again)


def mirrored(images):
    return images.reshape(-1, 32, 32)[:, :, ::-1].reshape(images.shape)


def test_half_of_the_training_images_are_mirrored(npz):
    """Each independently, determined by the key, which draws the same images without mirroring."""
    plain, data = ImageTask(data=str(npz)).load(), ImageTask(data=str(npz), mirror=True).load()
    key, other = mx.random.key(1), mx.random.key(2)
    (as_is, labels), (tokens, same_labels) = ([np.array(a) for a in each.draw(key, 3000)] for each in (plain, data))
    assert np.array_equal(labels, same_labels)
    assert tokens.dtype == as_is.dtype
    turned = (tokens != as_is).any(axis=1)
    assert np.array_equal(tokens[turned], mirrored(as_is[turned]))
    assert abs(turned.mean() - 0.5) < 4 * 0.5 / 3000**0.5
    both = {(row.tobytes(), turn) for row, turn in zip(as_is, turned, strict=True)}
    assert len(both) == 2 * 90  # each image occurs in both orientations
    assert np.array_equal(tokens, data.draw(key, 3000)[0])
    (again, _), (unturned, _) = data.draw(other, 3000), plain.draw(other, 3000)
    assert (np.array(again != unturned).any(axis=1) != turned).mean() > 0.4  # drawn independently each time


@pytest.mark.parametrize("habit", ["held-out", "test"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_images_are_never_mirrored(npz, habit, split):
    plain, data = (ImageTask(data=str(npz), validate_on=habit, mirror=mirror).load() for mirror in (False, True))
    for one, other in zip(*(each.held_out(split, None, 7, mx.random.key(3)) for each in (plain, data)), strict=True):
        assert mx.array_equal(one.read_tokens(0, 1024), other.read_tokens(0, 1024))


def test_mirroring_depends_on_seed_and_step_only(npz):
    """So that a resumed run reads the same batches."""
    first, second = (ImageTask(data=str(npz), mirror=True).load() for _ in range(2))
    batches = [first.batch(5, step, 8).tokens for step in range(4)]
    assert mx.array_equal(second.batch(5, 3, 8).tokens, batches[3])
    assert not mx.array_equal(batches[2], batches[3])


def test_chance_is_the_loss_of_guessing_among_the_classes(npz):
    assert ImageTask(data=str(npz)).load().chance == pytest.approx(2.3026, abs=1e-4)  # ln 10


def arrays_of(colours, count):
    rgb, labels = colours["train"]
    return cifar.grey(rgb).reshape(-1, 1024)[:count], labels[:count]
