"""Data are read exactly or refused in one sentence that names the culprit; nothing here needs a
network.
"""

import gzip
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data import datasets
from pyro_vae.data.datasets import DATASETS, load
from pyro_vae.data.image_data import ImageData, own_split, random_split, sha256
from pyro_vae.errors import UserError, did_you_mean

MNIST_ROOT = Path(os.environ.get("PYRO_VAE_DATA") or Path(__file__).parents[3] / "shared" / "data")
IDX_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def levels(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def refused(call: Any, *words: str) -> str:
    """The one line with which a call is refused; it has these words, and never advises to allow
    pickles.
    """
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "allow_pickle" not in message
    for word in words:
        assert word in message
    return message


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def idx_root(tmp_path: Path) -> Path:
    """A small set in MNIST's layout, packed only."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = (
        levels(6, 5, 4),
        np.arange(6, dtype=np.uint8),
        levels(3, 5, 4)[::-1],
        np.arange(3, dtype=np.uint8),
    )
    for stem, array in zip(IDX_STEMS, arrays, strict=True):
        (raw / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


# ------------------------------------------------------------------------------------------
# named sets


def test_digits_are_embedded_with_17_levels() -> None:
    digits = load("digits")
    assert digits.event_shape == (1, 8, 8)
    assert len(digits.train) + len(digits.test) == 1797
    assert (
        digits.levels == 17 and int(digits.train.max()) == 16 and digits.train.dtype == torch.uint8
    )
    assert digits.train_labels is not None and digits.train_labels.dtype == torch.int64
    assert load("digits").sha256 == digits.sha256 == sha256(digits.train, digits.test)
    assert load("digits", seed=1).sha256 != digits.sha256
    assert "seed 0" in digits.split


@pytest.mark.parametrize("name", DATASETS)
def test_every_named_set_has_a_description_of_a_sentence(name: str) -> None:
    assert (DATASETS[name].__doc__ or "").partition("\n\n")[0].rstrip().endswith(".")


def test_mnist_is_the_published_one() -> None:
    if not (MNIST_ROOT / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {MNIST_ROOT}; set PYRO_VAE_DATA")
    before = sorted(path.name for path in MNIST_ROOT.rglob("*"))
    mnist = load("mnist", MNIST_ROOT, download=False)
    assert mnist.train.shape == (60000, 1, 28, 28) and mnist.test.shape == (10000, 1, 28, 28)
    assert mnist.levels == 256 and mnist.split == "the set's own split"
    assert mnist.test_labels is not None
    assert torch.bincount(mnist.test_labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert mnist.train.float().mean() / 255 == pytest.approx(
        0.1307, abs=5e-5
    )  # the constant in PyTorch's examples
    assert sorted(path.name for path in MNIST_ROOT.rglob("*")) == before


@pytest.mark.parametrize("unpacked", [False, True])
def test_idx_files_are_read_in_place(idx_root: Path, unpacked: bool) -> None:
    raw = idx_root / "MNIST" / "raw"
    if unpacked:
        for path in list(raw.iterdir()):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    before = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    mnist = load("mnist", idx_root, download=False)
    assert torch.equal(mnist.train[:, 0], torch.from_numpy(levels(6, 5, 4)))
    assert mnist.train_labels is not None and mnist.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert {path: path.stat().st_mtime_ns for path in raw.iterdir()} == before


def test_idx_root_may_be_the_sets_own_folder(idx_root: Path) -> None:
    assert (
        load("mnist", idx_root / "MNIST", download=False).sha256
        == load("mnist", idx_root, download=False).sha256
    )


def test_data_root_comes_from_the_environment(
    idx_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_VAE_DATA", str(idx_root))
    assert len(load("mnist", download=False).test) == 3


def test_idx_labels_are_optional(idx_root: Path) -> None:
    (idx_root / "MNIST" / "raw" / f"{IDX_STEMS[1]}.gz").unlink()
    assert load("mnist", idx_root, download=False).train_labels is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(idx(levels(6, 5, 4)))[:-40], "gzip"),
        (gzip.compress(idx(levels(6, 5, 4))[:-7]), "113 found"),
        (b"<!DOCTYPE html><html>404</html>", "gzip"),
        (gzip.compress(b"<!DOCTYPE html><html>404</html>"), "web page"),
        (gzip.compress(b""), "expected an IDX file"),
        (gzip.compress(b"\x00\x00\x08\x03\x00"), "truncated"),
        (gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00\x00\x00\x00"), "IDX file of bytes"),
    ],
    ids=["cut-gzip", "cut-idx", "html", "html-gzip", "empty", "cut-header", "floats"],
)
def test_damaged_idx_files_are_named(idx_root: Path, content: bytes, words: str) -> None:
    path = idx_root / "MNIST" / "raw" / f"{IDX_STEMS[0]}.gz"
    path.write_bytes(content)
    refused(lambda: load("mnist", idx_root), str(path), words)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "MNIST"), ("kmnist", "KMNIST"), ("fashion-mnist", "FashionMNIST")],
)
def test_absent_files_are_listed(tmp_path: Path, name: str, folder: str) -> None:
    raw = str(tmp_path / folder / "raw")
    refused(lambda: load(name, tmp_path, download=False), raw, f"{IDX_STEMS[0]}.gz", "--data-root")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "torchvision_name", "file"),
    [("mnist", "MNIST", IDX_STEMS[0]), ("cifar10", "CIFAR10", "cifar-10-python.tar.gz")],
)
def test_a_failed_download_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, torchvision_name: str, file: str
) -> None:
    from urllib.error import URLError

    from torchvision import datasets

    def offline(self: Any) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(getattr(datasets, torchvision_name), "download", offline)
    refused(lambda: load(name, tmp_path), "no route to host", str(tmp_path), file)


def test_a_damaged_cifar_archive_is_neither_used_nor_overwritten(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half a download")
    refused(lambda: load("cifar10", tmp_path), str(archive), "MD5")
    assert archive.read_bytes() == b"half a download"


def test_cifar_is_unpacked_outside_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib
    import tarfile

    from torchvision import datasets

    folder = tmp_path / "made" / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    batches = [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list]
    for name in batches:
        (folder / name).write_bytes(pickle.dumps({"data": levels(4, 3072), "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c", "d"]}))
    root = tmp_path / "root"
    root.mkdir()
    archive = root / datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    cifar = datasets.CIFAR10
    monkeypatch.setattr(cifar, "tgz_md5", md5(archive))
    monkeypatch.setattr(
        cifar, "train_list", [[name, md5(folder / name)] for name, _ in cifar.train_list]
    )
    monkeypatch.setattr(
        cifar, "test_list", [[name, md5(folder / name)] for name, _ in cifar.test_list]
    )
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5(folder / "batches.meta")})
    read = load("cifar10", root)
    assert read.train.shape == (20, 3, 32, 32) and read.test.shape == (4, 3, 32, 32)
    assert torch.equal(read.test.flatten(1), torch.from_numpy(levels(4, 3072)))
    assert [path.name for path in root.iterdir()] == [archive.name]


def test_a_torchvision_that_does_not_match_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import builtins

    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    refused(lambda: load("kmnist", tmp_path), "torchvision does not match torch", "pip install")


# --------------------------------------------------------------------------------------------------
# arrays and files


@pytest.mark.parametrize(
    ("shape", "event_shape"),
    [
        ((9, 5, 4), (1, 5, 4)),
        ((9, 3, 5, 6), (3, 5, 6)),
        ((9, 5, 6, 3), (3, 5, 6)),
        ((9, 5, 6, 1), (1, 5, 6)),
        ((9, 1, 6, 3), (1, 6, 3)),
        ((9, 7), (7,)),
    ],
)
def test_npy_axes(tmp_path: Path, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "images.npy", levels(*shape))
    read = load(tmp_path / "images.npy")
    assert read.event_shape == event_shape
    assert read.levels == 256 and read.name == "images.npy"


def test_channels_last_moves_the_right_axis() -> None:
    images = levels(9, 5, 6, 3)
    read = own_split("it", images, images)
    assert torch.equal(read.train, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert read.train.is_contiguous()


@pytest.mark.parametrize(
    ("images", "dtype", "number"),
    [
        (levels(9, 4).astype(np.int64), torch.uint8, 256),
        (levels(9, 4).astype(">i4"), torch.uint8, 256),
        (levels(9, 4) > 100, torch.uint8, 2),
        ((levels(9, 4) > 100).astype(np.uint8), torch.uint8, 2),
        (levels(9, 4) / 7.0 - 3.0, torch.float32, None),
        ((levels(9, 4) / 255).astype(">f4"), torch.float32, None),
        ((levels(9, 4) / 255).astype(np.float16), torch.float32, None),
    ],
    ids=["int64", "big-endian", "bool", "zero-one", "float64", "big-endian-float", "float16"],
)
def test_dtypes(images: Any, dtype: torch.dtype, number: int | None) -> None:
    read = own_split("it", images, images)
    assert read.train.dtype == dtype and read.levels == number
    torch.testing.assert_close(read.train, torch.from_numpy(images.astype(np.float32)).to(dtype))


def test_npz_with_its_own_split_and_labels(tmp_path: Path) -> None:
    train, test = levels(6, 5, 4), levels(3, 5, 4)
    np.savez(
        tmp_path / "set.npz",
        train=train,
        test=test,
        train_labels=np.arange(6),
        other=np.array([{}]),
    )
    read = load(tmp_path / "set.npz")
    assert torch.equal(read.train[:, 0], torch.from_numpy(train))
    assert torch.equal(read.test[:, 0], torch.from_numpy(test))
    assert (
        read.train_labels is not None
        and read.train_labels.tolist() == list(range(6))
        and read.test_labels is None
    )


def test_a_random_split_keeps_labels_with_images_and_loses_none(tmp_path: Path) -> None:
    images = np.arange(200, dtype=np.uint8)[:, None].repeat(3, axis=1)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(200))
    read = load(tmp_path / "set.npz", seed=3, test_fraction=0.25)
    assert len(read.test) == 50
    for part, labels in ((read.train, read.train_labels), (read.test, read.test_labels)):
        assert labels is not None and torch.equal(part[:, 0].long(), labels)
    assert sorted(torch.cat([read.train[:, 0], read.test[:, 0]]).tolist()) == list(range(200))
    assert read.split == "random split, seed 3, test fraction 0.25"


GOOD = levels(9, 5, 4)
NAN = np.where(np.arange(9)[:, None] == 4, np.nan, np.ones((9, 5)))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": GOOD}, ["'pictures'", "'images'"]),
        ({"train": GOOD}, ["'train'", "'test'"]),
        ({"images": GOOD, "train": GOOD}, ["'images'"]),
        ({"images": np.empty((0, 5, 4), np.uint8)}, ["(0, 5, 4)"]),
        ({"images": np.empty((5, 0), np.uint8)}, ["(5, 0)"]),
        ({"images": GOOD[:1]}, ["1 image"]),
        ({"train": GOOD[:1], "test": GOOD}, ["'train'", "one image"]),
        ({"images": GOOD[0, 0]}, ["(4,)", "(N, H, W)"]),
        ({"images": GOOD[None, None]}, ["(1, 1, 9, 5, 4)"]),
        ({"images": GOOD.astype(str)}, ["'images'", "<U"]),
        ({"images": GOOD.astype(complex)}, ["complex128"]),
        ({"images": GOOD.astype("datetime64[s]")}, ["datetime64"]),
        ({"images": GOOD.astype(np.int16) - 300}, ["image 0", "-"]),
        ({"images": GOOD.astype(np.int64) * 300}, ["whole numbers are grey levels 0 to 255"]),
        ({"train": np.ones((9, 5)), "test": NAN}, ["'test'", "row 4", "nan"]),
        (
            {"train": np.where(np.isnan(NAN), np.inf, 1), "test": np.ones((9, 5))},
            ["'train'", "row 4", "inf"],
        ),
        ({"images": np.full((9, 5), 1e300)}, ["row 0", "1e+300"]),
        ({"train": GOOD, "test": GOOD[:, :4]}, ["(1, 5, 4)", "(1, 4, 4)"]),
        ({"train": GOOD, "test": GOOD / 255}, ["uint8", "float64"]),
        ({"images": GOOD, "labels": np.arange(8)}, ["'labels'", "9 labels"]),
        ({"images": GOOD, "labels": np.full(9, 1j)}, ["'labels'", "9 integers or names"]),
        ({"images": np.array([{}] * 9)}, ["plain arrays"]),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    tmp_path: Path, arrays: dict[str, Any], words: list[str]
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(lambda: load(tmp_path / "bad.npz"), "bad.npz", *words)


class Sentinel:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle.npy"])
def test_pickles_are_never_run(tmp_path: Path, kind: str) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / f"evil.{kind}"
    evil = np.array([Sentinel(sentinel)] * 4, dtype=object)
    if kind == "npy":
        np.save(path, evil, allow_pickle=True)
    elif kind == "npz":
        np.savez(path, images=evil)
    else:
        path.write_bytes(pickle.dumps(Sentinel(sentinel)))
    refused(lambda: load(path), str(path))
    assert not sentinel.exists()
    if kind == "pickle.npy":
        pickle.loads(path.read_bytes())  # the attack itself works
        assert sentinel.exists()


@pytest.mark.parametrize("name", ["set.npz", "set.npy"])
@pytest.mark.parametrize("keep", [0, 3, 50, 150, -30])
def test_cut_files_are_refused(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    if name == "set.npz":
        np.savez_compressed(path, images=levels(9, 50, 40))
    else:
        np.save(path, levels(9, 50, 40))
    path.write_bytes(path.read_bytes()[:keep])
    refused(lambda: load(path), str(path))


def test_a_damaged_member_of_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=levels(9, 50, 40))
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)
    path.write_bytes(content)
    refused(lambda: load(path), str(path), "damaged")


@pytest.mark.parametrize("shape", ["(1000000000000000, 1000)", "(9, 5", "(9, 5, 4), 'more': 1"])
def test_a_header_that_is_wrong_is_refused(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "set.npy"
    text = (
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    )
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(180))
    refused(lambda: load(path), str(path), "damaged")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MNIST", ["did you mean 'mnist'"]),
        ("fashion_mnist", ["did you mean 'fashion-mnist'"]),
        ("nothing/at/all.npz", ["no such file"]),
        ("images.npy", ["no such file"]),
    ],
)
def test_unknown_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: load(name), name, ".npz", *words)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.mat").write_text("1,2")
    refused(lambda: load(tmp_path / "set.mat"), "set.mat", ".npz")


def test_did_you_mean() -> None:
    assert did_you_mean("guide", "meanfeild", ["MeanField", "IAF"]) == (
        "unknown guide 'meanfeild'; did you mean 'MeanField'? choices: IAF, MeanField"
    )
    assert did_you_mean("guide", "zzz", ["MeanField"]) == "unknown guide 'zzz'; choices: MeanField"


# ------------------------------------------------------------------------------------------------
# folders of images


def picture(path: Path, *shape: int, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels(*shape)).convert(mode).save(path)
    return path


@pytest.mark.parametrize(("shape", "event_shape"), [((5, 4), (1, 5, 4)), ((5, 4, 3), (3, 5, 4))])
def test_class_folders_give_labels(
    tmp_path: Path, shape: tuple[int, ...], event_shape: tuple[int, ...]
) -> None:
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.PNG"):
        picture(tmp_path / name, *shape, mode="L" if len(shape) == 2 else "RGB")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    read = load(tmp_path)
    assert read.event_shape == event_shape and read.levels == 256
    assert read.train_labels is not None and read.test_labels is not None
    assert sorted(torch.cat([read.train_labels, read.test_labels]).tolist()) == [0, 0, 1, 1, 1]
    pixels = torch.from_numpy(levels(*shape))
    assert torch.equal(read.train[0], pixels[None] if len(shape) == 2 else pixels.permute(2, 0, 1))
    assert load(tmp_path).sha256 == read.sha256


def test_train_and_test_folders_are_the_split(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/b/1.png", "test/b/0.png"):
        picture(tmp_path / name, 5, 4)
    read = load(tmp_path)
    assert read.split == "the set's own split"
    assert read.test_labels is not None and read.test_labels.tolist() == [1]
    stray = picture(tmp_path / "test" / "c" / "0.png", 5, 4)
    refused(lambda: load(tmp_path), str(stray.parent))


def test_loose_images_have_no_labels(tmp_path: Path) -> None:
    for row in range(4):
        picture(tmp_path / f"{row}.png", 5, 4)
    assert load(tmp_path).train_labels is None
    picture(tmp_path / "sub" / "0.png", 5, 4)
    refused(lambda: load(tmp_path), "sub", "0.png")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path), str(tmp_path), ".png")


@pytest.mark.parametrize("kind", ["size", "colour", "cut", "text", "transparent", "sixteen"])
def test_the_file_that_does_not_fit_is_named(tmp_path: Path, kind: str) -> None:
    for row in range(4):
        picture(tmp_path / f"{row}.png", 50, 40)
    bad = tmp_path / "2.png"
    if kind == "size":
        picture(bad, 40, 50)
    elif kind == "colour":
        picture(bad, 50, 40, mode="RGB")
    elif kind == "cut":
        bad.write_bytes(bad.read_bytes()[:-200])
    elif kind == "text":
        bad.write_text("not an image")
    elif kind == "transparent":
        Image.fromarray(levels(50, 40, 4), mode=None).save(bad)
    else:
        Image.fromarray(levels(50, 40).astype(np.uint16) * 256).save(bad)
    refused(lambda: load(tmp_path), str(bad))


def test_opaque_alpha_and_palettes_are_read_as_the_colours_they_are(tmp_path: Path) -> None:
    colours = levels(5, 4, 3) // 64 * 64
    image = Image.fromarray(colours)
    image.convert("RGBA").save(tmp_path / "0.png")
    image.quantize(64).save(tmp_path / "1.png")
    image.save(tmp_path / "2.png")
    read, expected = load(tmp_path), torch.from_numpy(colours).permute(2, 0, 1)
    assert all(torch.equal(each, expected) for each in torch.cat([read.train, read.test]))


# ------------------------------------------------------------------------------------------
# splits, SHA-256


def small(number: int = 20) -> ImageData:
    return own_split("it", levels(number, 5, 4), levels(3, 5, 4))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_validation_split_is_a_partition(fraction: float) -> None:
    train, valid = small().validation_split(fraction, seed=1)
    assert len(valid) == min(max(1, round(20 * fraction)), 19)
    assert torch.cat([train, valid]).sort().values.tolist() == list(range(20))
    again = small().validation_split(fraction, seed=1)
    assert torch.equal(again[0], train) and torch.equal(again[1], valid)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, float("nan")])
def test_fractions_are_checked(fraction: float) -> None:
    refused(lambda: small().validation_split(fraction, seed=0), "validation fraction")
    refused(lambda: random_split("it", levels(9, 4), test_fraction=fraction), "test fraction")


def test_splits_leave_the_global_generators_alone() -> None:
    state = torch.get_rng_state()
    load("digits", seed=5)
    small().validation_split(0.2, 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_sha256_sees_pixels_shapes_dtypes_and_order() -> None:
    images = torch.from_numpy(levels(6, 5, 4))
    changed = images.clone()
    changed[5, 4, 3] ^= 1
    variants = [
        (images,),
        (changed,),
        (images.reshape(6, 20),),
        (images.view(torch.int8),),
        (images[:3], images[3:]),
        (images[3:], images[:3]),
    ]
    assert len({sha256(*each) for each in variants}) == len(variants)
    assert sha256(images.mT.contiguous().mT) == sha256(images)


def test_float_data_may_be_any_finite_reals() -> None:
    images = np.random.default_rng(0).normal(size=(9, 4)) * 100
    assert own_split("it", images, images).levels is None


def test_level_beyond_the_declared_levels_is_refused() -> None:
    refused(lambda: own_split("it", levels(9, 4), levels(9, 4), levels=17), "0 to 16")


def test_read_only_root(idx_root: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root ignores file modes")
    for path in (idx_root / "MNIST" / "raw", idx_root / "MNIST", idx_root):
        path.chmod(0o555)
    try:
        assert len(load("mnist", idx_root).train) == 6
    finally:
        for path in (idx_root, idx_root / "MNIST", idx_root / "MNIST" / "raw"):
            path.chmod(0o755)


def test_an_unpacked_file_wins_over_the_packed_one(idx_root: Path) -> None:
    raw = idx_root / "MNIST" / "raw"
    (raw / IDX_STEMS[2]).write_bytes(idx(levels(2, 5, 4)))
    shutil.copy(raw / f"{IDX_STEMS[3]}.gz", raw / "unrelated.gz")
    (raw / f"{IDX_STEMS[3]}.gz").write_bytes(gzip.compress(idx(np.arange(2, dtype=np.uint8))))
    assert len(datasets.load("mnist", idx_root).test) == 2


# ------------------------------------------------------------------------------- sets whose files
# are placed by hand


@pytest.fixture
def amat_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Larochelle's three files with a few made-up images in them, and their SHA-256 in the place of
    the published.
    """
    import hashlib

    from pyro_vae.data import static_mnist

    folder = tmp_path / "static-mnist"
    folder.mkdir()
    for name, number in zip(static_mnist.SHA256, (5, 3, 2), strict=True):
        rows = (levels(number, 784) > 127).astype(int)
        rows[:, 0] = number % 2
        content = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
        (folder / name).write_bytes(content)
        monkeypatch.setitem(static_mnist.SHA256, name, hashlib.sha256(content).hexdigest())
    return tmp_path


def test_static_mnist_is_read_in_order(amat_root: Path) -> None:
    read = load("static-mnist", amat_root)
    assert (
        read.train.shape == (8, 1, 28, 28)
        and read.test.shape == (2, 1, 28, 28)
        and read.levels == 2
    )
    assert torch.equal(
        read.train[:5].flatten(1)[:, 1:], torch.from_numpy(levels(5, 784)[:, 1:] > 127).byte()
    )
    assert read.train[:, 0, 0, 0].tolist() == [1] * 8 and read.test[:, 0, 0, 0].tolist() == [0, 0]
    assert read.train_labels is None and "validation images last" in read.split
    assert load("static-mnist", amat_root / "static-mnist").sha256 == read.sha256


def test_static_mnist_says_where_to_put_its_files(amat_root: Path) -> None:
    (amat_root / "static-mnist" / "binarized_mnist_valid.amat").unlink()
    message = refused(
        lambda: load("static-mnist", amat_root),
        "binarized_mnist_valid.amat not found",
        "--data-root",
        "SHA-256",
    )
    assert str(amat_root / "static-mnist") in message and "train.amat" not in message


def test_the_published_hashes_are_those_of_whole_files() -> None:
    """64 hexadecimal digits each, all different."""
    from pyro_vae.data.static_mnist import SHA256

    assert len(set(SHA256.values())) == 3 and all(
        len(bytes.fromhex(each)) == 32 for each in SHA256.values()
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: content[:-100], "truncated or damaged"),
        (lambda content: b"<!DOCTYPE html><html>404</html>", "web page"),
        (lambda content: b"", "truncated or damaged, 0 digits"),
        (
            lambda content: (
                content.replace(b"0", b"1", 1) if content[:1] == b"0" else b"0" + content[1:]
            ),
            "not the published file",
        ),
        (lambda content: content[: 2 * 784], "not the published file"),
    ],
    ids=["cut", "html", "empty", "flipped", "cut-at-an-image"],
)
def test_damaged_amat_files_are_named(amat_root: Path, spoil: Any, words: str) -> None:
    path = amat_root / "static-mnist" / "binarized_mnist_train.amat"
    path.write_bytes(spoil(path.read_bytes()))
    refused(lambda: load("static-mnist", amat_root), str(path), words, "get it again")


@pytest.fixture
def chardata(tmp_path: Path) -> Path:
    """A file as the IWAE paper's: pixels in columns, each image column by column; one-hot
    alphabets.
    """
    from scipy.io import savemat

    random = np.random.default_rng(0)
    held = {"data": random.uniform(size=(784, 6)), "testdata": random.uniform(size=(784, 4))}
    held |= {"target": np.eye(5)[:, [0, 1, 2, 3, 4, 0]], "testtarget": np.eye(5)[:, [4, 3, 2, 1]]}
    path = tmp_path / "OMNIGLOT" / "chardata.mat"
    path.parent.mkdir()
    savemat(path, held)
    return path


def test_omniglot_of_the_iwae_paper(chardata: Path) -> None:
    """Against the IWAE code's own reshape: rows of 28×28 laid out again in Fortran's order."""
    from scipy.io import loadmat

    read = load("omniglot", chardata.parents[1], download=False)
    held = loadmat(chardata)["data"].T.astype(np.float32)
    expected = held.reshape(-1, 28, 28).reshape(-1, 784, order="F")
    assert torch.equal(read.train.flatten(1), torch.from_numpy(expected)) and read.event_shape == (
        1,
        28,
        28,
    )
    assert read.train_labels is not None and read.train_labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert read.test_labels is not None and read.test_labels.tolist() == [4, 3, 2, 1]
    assert (
        read.levels is None
        and read.split == "the IWAE paper's split (another file than the published one)"
    )


def test_a_git_object_name_tells_the_published_file(
    chardata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SHA-1 of ``blob``, the size and the bytes, as `git hash-object` prints it."""
    import hashlib

    from pyro_vae.data import omniglot

    content = chardata.read_bytes()
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    monkeypatch.setattr(omniglot, "BURDA_BLOB", blob)
    assert load("omniglot", chardata.parents[1], download=False).split == "the IWAE paper's split"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: content[:500], "truncated or damaged"),
        (lambda content: b"<html>404</html>", "web page"),
        (lambda content: b"", "truncated or damaged"),
    ],
    ids=["cut", "html", "empty"],
)
def test_damaged_omniglot_files_are_named(chardata: Path, spoil: Any, words: str) -> None:
    chardata.write_bytes(spoil(chardata.read_bytes()))
    refused(
        lambda: load("omniglot", chardata.parents[1], download=False),
        str(chardata),
        words,
        "get it again",
    )


def test_a_matlab_file_of_something_else_is_named(chardata: Path) -> None:
    from scipy.io import savemat

    savemat(chardata, {"data": np.zeros((100, 6)), "target": np.eye(6)})
    refused(lambda: load("omniglot", chardata.parents[1], download=False), "(784, N)", "(100, 6)")


def drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torchvision's two archives, with three drawings in each, the names out of order."""
    import hashlib
    import io
    import zipfile

    from torchvision import datasets

    home = tmp_path / datasets.Omniglot.folder
    home.mkdir()
    sums = {}
    for part, name in enumerate(datasets.Omniglot.zips_md5):
        with zipfile.ZipFile(home / f"{name}.zip", "w") as archive:
            for number in (2, 0, 1):
                canvas = np.full((105, 105), True)
                canvas[15 * number : 15 * number + 15, 45 * part : 45 * part + 15] = False
                file = io.BytesIO()
                Image.fromarray(canvas).save(file, "png")
                archive.writestr(f"{name}/Greek/character01/{number}.png", file.getvalue())
        sums[name] = hashlib.md5((home / f"{name}.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", sums)
    return home


def test_omniglots_drawings_are_resized_by_area(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strokes are white, in order of their names; the mean grey level is the share of ink; a block
    keeps its place.
    """
    drawings(tmp_path, monkeypatch)
    read = load("omniglot", tmp_path, download=False)
    assert (
        read.train.shape == read.test.shape == (3, 1, 28, 28)
        and read.levels == 256
        and "not the IWAE" in read.split
    )
    for part, images in enumerate((read.train, read.test)):
        for number, image in enumerate(images[:, 0]):
            assert float(image.float().mean()) / 255 == pytest.approx(15 * 15 / 105**2, rel=0.02)
            block = image[4 * number : 4 * number + 4, 12 * part : 12 * part + 4]
            assert int(block.sum()) == int(image.sum()) and int(block.max()) == 255


def test_a_damaged_or_absent_omniglot_archive_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = drawings(tmp_path, monkeypatch)
    archive = home / "images_evaluation.zip"
    archive.write_bytes(archive.read_bytes()[:-20])
    refused(lambda: load("omniglot", tmp_path), str(archive), "MD5")
    archive.unlink()
    refused(
        lambda: load("omniglot", tmp_path, download=False),
        str(home),
        "chardata.mat",
        "images_evaluation.zip",
        "--data-root",
    )


def test_an_omniglot_download_that_fails_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    from torchvision import datasets

    def offline(self: Any) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(datasets.Omniglot, "download", offline)
    refused(
        lambda: load("omniglot", tmp_path),
        "no route to host",
        "chardata.mat",
        "images_background.zip",
    )
