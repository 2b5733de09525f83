import io
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from robustcords import data
from robustcords.errors import UserError


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def write(file, **columns):
    """Writes columns as a plain parquet file, with none of Hugging Face's metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def write_hugging_face(file, images, labels, names=("cat", "dog"), image="img", label="label"):
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    cells = [{"bytes": encoded(pixels, "WEBP"), "path": None} for pixels in images]
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({image: cells, label: labels}, features=features).to_parquet(str(file))


@pytest.fixture
def folder(tmp_path, pixels):
    """Six training images in two files and four test images, as Hugging Face writes them."""
    root = tmp_path / "set"
    write_hugging_face(root / "train-00000-of-00002.parquet", pixels[:4], [0, 1, 0, 1])
    write_hugging_face(root / "train-00001-of-00002.parquet", pixels[4:6], [1, 1])
    write_hugging_face(root / "test-00000-of-00001.parquet", pixels[6:], [1, 0, 0, 1])
    return root


@pytest.fixture
def plain(tmp_path, pixels):
    """The same images in plain columns: bytes and numbers."""
    root = tmp_path / "plain"
    write(root / "train.parquet", image=[encoded(array) for array in pixels[:6]], label=[0, 1, 0, 1, 1, 1])
    write(root / "test.parquet", image=[encoded(array) for array in pixels[6:]], label=[1, 0, 0, 1])
    return root


def load(root, **options):
    return data.source(str(root))(name=str(root), **options).load()


def check(splits, pixels, classes):
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert torch.equal(splits.train.images, expected[:6])
    assert torch.equal(splits.test.images, expected[6:])
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [1, 0, 0, 1]
    assert splits.train.labels.dtype == torch.int64
    assert splits.train.classes == splits.test.classes == classes


def test_reads_what_hugging_face_writes(folder, pixels):
    check(load(folder), pixels, ("cat", "dog"))


def test_reads_plain_columns(plain, pixels):
    check(load(plain), pixels, ("0", "1"))


def test_reads_split_folders_and_odd_names(plain, pixels, tmp_path):
    root = tmp_path / "a [1] *b"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        (plain / f"{split}.parquet").rename(root / split / "0000.parquet")
    check(load(root), pixels, ("0", "1"))


def test_path_wins_over_a_hub_id(plain, pixels):
    check(data.source("somebody/something")(name="somebody/something", path=str(plain)).load(), pixels, ("0", "1"))


def test_needs_no_network_and_leaves_nothing_behind(folder, pixels, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    check(load(folder), pixels, ("cat", "dog"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_reads_a_read_only_folder(folder, pixels):
    folder.chmod(0o500)
    check(load(folder), pixels, ("cat", "dog"))


def test_images_beside_the_table(tmp_path, pixels):
    for split, rows in (("train", pixels[:6]), ("test", pixels[6:])):
        names = [f"{split}{number}.png" for number in range(len(rows))]
        labels = [0, 1, 0, 1, 1, 1] if split == "train" else [1, 0, 0, 1]
        write(tmp_path / f"{split}.parquet", image=[{"bytes": None, "path": name} for name in names], label=labels)
        for name, array in zip(names, rows, strict=True):
            (tmp_path / name).write_bytes(encoded(array))
    check(load(tmp_path), pixels, ("0", "1"))


def test_columns_by_option(tmp_path, pixels):
    for split, rows, labels in (("train", pixels[:6], [0, 1, 0, 1, 1, 1]), ("test", pixels[6:], [1, 0, 0, 1])):
        images = [encoded(array) for array in rows]
        columns = {"image": images[::-1], "photo": images, "label": [7] * len(rows), "kind": labels}
        write(tmp_path / f"{split}.parquet", **columns)
    check(load(tmp_path, image_column="photo", label_column="kind"), pixels, ("0", "1"))


def test_the_only_image_and_class_columns_need_no_usual_name(tmp_path, pixels):
    names = {"image": "photo", "label": "kind"}
    write_hugging_face(tmp_path / "train.parquet", pixels[:6], [0, 1, 0, 1, 1, 1], **names)
    write_hugging_face(tmp_path / "test.parquet", pixels[6:], [1, 0, 0, 1], **names)
    check(load(tmp_path), pixels, ("cat", "dog"))


def with_columns(root, pixels, **labels):
    """Writes the images with several columns of labels; those that are ``"cat dog"`` are Hugging Face's."""
    features = {"image": datasets.Image()}
    features |= {
        name: datasets.ClassLabel(names=kind.split()) if kind else datasets.Value("int64")
        for name, kind in labels.items()
    }
    for split, rows in (("train", pixels[:6]), ("test", pixels[6:])):
        columns = {name: [(row + number) % 2 for row in range(len(rows))] for number, name in enumerate(labels)}
        cells = [{"bytes": encoded(array), "path": None} for array in rows]
        table = datasets.Dataset.from_dict({"image": cells, **columns}, features=datasets.Features(features))
        root.mkdir(exist_ok=True)
        table.to_parquet(str(root / f"{split}.parquet"))
    return root


def test_fine_labels_are_read_where_there_are_coarse_ones_too(tmp_path, pixels):
    root = with_columns(tmp_path / "set", pixels, coarse_label="pet beast", fine_label="cat dog")
    splits = load(root)
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert splits.notes == tuple(
        f"{root}, {split} split: reads fine_label, not coarse_label; set data.label_column to choose"
        for split in ("train", "test")
    )
    chosen = load(root, label_column="coarse_label")
    assert (chosen.train.labels.tolist(), chosen.notes) == ([0, 1, 0, 1, 0, 1], ())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"label": "cat dog", "fine_label": "ant bee"}, "label, fine_label"),
        ({"label": "", "labels": ""}, "label, labels"),
        ({"kind": "cat dog", "label": ""}, "kind, label"),
    ],
)
def test_columns_that_could_all_be_the_label(tmp_path, pixels, labels, message):
    root = with_columns(tmp_path / "set", pixels, **labels)
    with pytest.raises(UserError, match=f"several columns could be the label: {message}; set data.label_column"):
        load(root)
    assert len(load(root, label_column=next(iter(labels))).train) == 6


def test_columns_that_could_all_be_the_image(plain):
    for split in ("train", "test"):
        table = pq.read_table(plain / f"{split}.parquet")
        pq.write_table(table.append_column("img", table["image"]), plain / f"{split}.parquet")
    with pytest.raises(UserError, match=r"several columns could be the image: img, image; set data\.image_column"):
        load(plain)
    assert len(load(plain, image_column="image").train) == 6


def test_test_split_by_option(plain, pixels):
    write(plain / "valid-0.parquet", image=[encoded(pixels[0])], label=[1])
    assert len(load(plain).test) == 4
    assert len(load(plain, test_split="validation").test) == 1
    with pytest.raises(UserError, match="no split 'valdation'; did you mean 'validation'"):
        load(plain, test_split="valdation")
    (plain / "test.parquet").unlink()
    assert len(load(plain).test) == 1


def test_grey_and_image_size(tmp_path):
    for split in ("train", "test"):
        arrays = [np.full((8 + number, 12), number, dtype=np.uint8) for number in range(4)]
        write(tmp_path / f"{split}.parquet", image=[encoded(array) for array in arrays], label=[0, 1, 0, 1])
    with pytest.raises(UserError, match=r"train\.parquet, row 1: the image is 12 x 9 .*set data\.image_size"):
        load(tmp_path)
    images = load(tmp_path, image_size=8).train.images
    assert torch.equal(images, torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8))


def test_augmentation_is_off_unless_asked_for(plain):
    source = data.source(str(plain))
    assert (source(name=str(plain)).crop, source(name=str(plain)).flip) == (0, False)


GOOD = encoded(np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"image": [GOOD, b"", GOOD], "label": [0, 1, 1]}, r"train\.parquet, row 1: the image has no bytes"),
        ({"image": [GOOD, None, GOOD], "label": [0, 1, 1]}, r"train\.parquet, row 1: there is no image"),
        ({"image": [GOOD, GOOD[:150], GOOD], "label": [0, 1, 1]}, r"train\.parquet, row 1: "),
        ({"image": [GOOD] * 3, "label": [0, 1, None]}, r"train\.parquet, row 2: there is no label"),
        ({"image": [GOOD] * 3, "label": [0, -1, 1]}, r"train\.parquet, row 1: the label -1 is out of range"),
        ({"image": [GOOD] * 3, "label": [0, 900, 1]}, r"train\.parquet, row 1: the label 900 is out of range"),
        ({"image": [GOOD] * 3, "label": [0, 0, 0]}, "train split: .*at least two classes"),
        ({"image": [GOOD] * 3, "label": [0, 0, 1]}, r"test\.parquet, row 1: the label 2 .*allowed: 0 to 1"),
        ({"image": [GOOD] * 3, "label": [0.0, 1.0, 1.0]}, "column 'label' holds float64, not integers"),
        ({"image": [GOOD] * 3, "label": ["a", "b", "c"]}, "column 'label' holds string, not integers"),
        ({"image": [1, 2, 3], "label": [0, 1, 2]}, "column 'image' holds int64, not encoded images"),
        ({"picture": [GOOD] * 3, "label": [0, 1, 2]}, r"no image column found \(columns: picture, label\)"),
        (
            {"image": [GOOD] * 3, "kind": [0, 1, 2]},
            r"no label column found \(columns: image, kind\).*data\.label_column",
        ),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "train split: there are no images"),
    ],
)
def test_bad_tables(tmp_path, train, message):
    write(tmp_path / "train.parquet", **train)
    write(tmp_path / "test.parquet", image=[GOOD] * 2, label=[0, 2])
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_rows_are_counted_in_their_own_file(folder, pixels):
    write_hugging_face(folder / "train-00000-of-00002.parquet", [*pixels[:3], pixels[3, :4]], [0, 1, 0, 1])
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet, row 3: "):
        load(folder)
    write_hugging_face(folder / "train-00000-of-00002.parquet", pixels[:4], [0, 1, 0, 1])
    write_hugging_face(folder / "train-00001-of-00002.parquet", [pixels[4], pixels[5, :4]], [1, 1])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet, row 1: "):
        load(folder)


def test_files_of_one_split_have_the_same_columns(folder, pixels):
    write_hugging_face(folder / "train-00001-of-00002.parquet", pixels[4:6], [1, 1], names=("dog", "cat"))
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: columns img, label are not of the same types"):
        load(folder)


def test_a_column_that_is_not_there(plain):
    with pytest.raises(UserError, match=r"data\.image_column: there is no column 'imagee'; did you mean 'image'"):
        load(plain, image_column="imagee")


def test_classes_in_another_order(folder, pixels):
    write_hugging_face(folder / "test-00000-of-00001.parquet", pixels[6:], [1, 0, 0, 1], names=("dog", "cat"))
    with pytest.raises(UserError, match="classes are not those of the train split"):
        load(folder)


def cut_in_half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "train.parquet").write_bytes(b""), r"train\.parquet: not a readable parquet file"),
        (lambda root: cut_in_half(root / "test.parquet"), r"test\.parquet: not a readable parquet file"),
        (lambda root: (root / "test.parquet").unlink(), r"there is no test split \(splits: train\)"),
        (lambda root: (root / "train.parquet").unlink(), r"there is no train split \(splits: test\)"),
        (
            lambda root: [file.rename(root / f"{file.stem[:2]}.parquet") for file in root.iterdir()],
            "no parquet files called",
        ),
    ],
)
def test_bad_files(plain, damage, message):
    damage(plain)
    with pytest.raises(UserError, match=message) as error:
        load(plain)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tested", ["test", "validation"])
def test_reads_what_the_hub_gives(pixels, monkeypatch, tested):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def part(rows, labels):
        images = [{"bytes": encoded(array), "path": None} for array in rows]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    def load_dataset(name, subset):
        assert (name, subset) == ("somebody/pets", "small")
        return datasets.DatasetDict(
            {"train": part(pixels[:6], [0, 1, 0, 1, 1, 1]), tested: part(pixels[6:], [1, 0, 0, 1])}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(data.source("somebody/pets")(name="somebody/pets", subset="small").load(), pixels, ("cat", "dog"))


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'no-such/set': cannot be loaded .*data\.path can name") as error:
        data.source("no-such/set")(name="no-such/set").load()
    assert "\n" not in str(error.value)


def test_path_has_to_be_a_folder(plain):
    source = data.source("somebody/something")
    with pytest.raises(UserError, match=r"data\.path: '.*absent' does not exist"):
        source(name="somebody/something", path=str(plain / "absent")).load()
    with pytest.raises(UserError, match=r"data\.path: '.*train\.parquet' is not a folder"):
        source(name="somebody/something", path=str(Path(plain / "train.parquet"))).load()
