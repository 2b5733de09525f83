import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from robustcords import data
from robustcords.data import source
from robustcords.data.on_disk import on_disk
from robustcords.errors import UserError


def load(root, **options):
    return data.source(str(root))(name=str(root), **options).load()


def test_reads_class_folders(class_folders, pixels):
    splits = load(class_folders)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert torch.equal(splits.train.images, expected[:6])
    assert torch.equal(splits.test.images, expected[6:])
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.classes == splits.test.classes == ("cat", "dog")


def test_a_part_of_train_is_tested_on_where_there_is_nothing_else(class_folders):
    shutil.rmtree(class_folders / "test")
    with pytest.raises(UserError, match=r"no test split .*; set data\.test_split, or data\.test_fraction "):
        load(class_folders)
    splits = load(class_folders, test_fraction=0.34)
    whole = load(class_folders, test_split="train").train
    assert splits.test.labels.bincount().tolist() == [1, 1]
    assert splits.train.labels.bincount().tolist() == [2, 2]
    both = torch.cat([splits.train.images, splits.test.images]).flatten(1).sort(dim=0).values
    assert torch.equal(both, whole.images.flatten(1).sort(dim=0).values)
    assert any("tests on 34% of train" in note for note in splits.notes)


def test_class_folders_alone_are_a_training_split(class_folders):
    shutil.rmtree(class_folders / "test")
    expected = load(class_folders, test_fraction=0.34)
    flat = (class_folders / "train").rename(class_folders.parent / "flat")
    splits = load(flat, test_fraction=0.34)
    assert torch.equal(splits.train.images, expected.train.images)
    assert torch.equal(splits.test.labels, expected.test.labels)
    assert f"{flat}: the folders in it are the classes (cat, dog)" in splits.notes
    with pytest.raises(
        UserError, match=r"no test split \(splits: train\); set data\.test_split, or data\.test_fraction"
    ):
        load(flat)
    (flat / "dog").rename(flat / "test")  # images without class folders, and no class called test
    with pytest.raises(UserError, match=r"neither parquet files .* nor class folders"):
        load(flat, test_fraction=0.34)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_the_test_set(class_folders, name):
    (class_folders / "test").rename(class_folders / name)
    assert len(load(class_folders).test) == 4


def test_passes_over_hidden_files_and_reads_deeper_ones(class_folders):
    (class_folders / "train" / ".cache").mkdir()
    (class_folders / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (class_folders / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (class_folders / "train" / "dog" / "more").mkdir()
    (class_folders / "train" / "dog" / "2.png").rename(class_folders / "train" / "dog" / "more" / "2.png")
    assert load(class_folders).train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_are_in_the_order_of_their_paths_folder_by_folder(class_folders):
    for name in ("a/b.png", "a-b.png", "a/c/d.png", "a.png"):
        (class_folders / "train" / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(class_folders / "train" / "cat" / "0.png", class_folders / "train" / "cat" / name)
    rows = on_disk(load(class_folders, storage="disk").train).reader.rows
    expected = [path for name in ("cat", "dog") for path in sorted((class_folders / "train" / name).rglob("*.png"))]
    assert [path for path, _ in rows.items(range(rows.count))] == expected


def test_both_splits_are_colour_where_one_is(class_folders, pixels):
    for file in (class_folders / "train").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    splits = load(class_folders)
    assert splits.train.images.shape[1] == splits.test.images.shape[1] == 3
    grey = np.asarray(Image.fromarray(pixels[0]).convert("L"))
    assert np.array_equal(splits.train.images[0].numpy(), np.stack([grey] * 3))


def test_image_size_makes_one_size(class_folders):
    file = class_folders / "train" / "dog" / "1.png"
    Image.new("RGB", (40, 30)).save(file)
    with pytest.raises(UserError, match=r"dog/1\.png: the image is 40 x 30 .* 6 x 5; set data\.image_size"):
        load(class_folders)
    assert load(class_folders, image_size=4).train.images.shape == (6, 3, 4, 4)


def test_test_images_of_another_size(class_folders):
    for file in (class_folders / "test").rglob("*.png"):
        Image.new("RGB", (7, 7)).save(file)
    with pytest.raises(UserError, match=r"test/cat/0\.png: the image is 7 x 7 .*training images are 6 x 5"):
        load(class_folders)


def truncate(root):
    file = root / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:60])


def extra_test_class(root):
    (root / "test" / "fox").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "train" / "dog" / "1.png").write_bytes(b""), r"train/dog/1\.png: the file is empty"),
        (lambda root: (root / "train" / "cat" / "notes.txt").write_text("hi"), r"cat/notes\.txt: not an image"),
        (truncate, r"train/dog/1\.png: "),
        (lambda root: (root / "train" / "fox").mkdir(), "train/fox: there are no images of this class"),
        (extra_test_class, r"test/fox: there is no such class in training \(classes: cat, dog\)"),
        (lambda root: shutil.rmtree(root / "test"), r"no test split \(splits: train\)"),
        (lambda root: shutil.rmtree(root / "train" / "dog"), "test/dog: there is no such class"),
        (lambda root: [shutil.rmtree(root / split / "dog") for split in ("train", "test")], "at least two classes"),
        (lambda root: [shutil.rmtree(root / "test" / name) for name in ("cat", "dog")], "test: there are no images"),
    ],
)
def test_bad_folders(class_folders, damage, message):
    damage(class_folders)
    with pytest.raises(UserError, match=message) as error:
        load(class_folders)
    assert "\n" not in str(error.value)


def test_names_in_upper_case_and_jpegs_of_every_mode_are_read(tmp_path):
    for split in ("train", "test"):
        for name, mode in (("cat", "CMYK"), ("dog", "L")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new(mode, (6, 5), 0).save(tmp_path / split / name / "IMG_1.JPG")
    train = load(tmp_path).train
    assert train.images.shape == (2, 3, 5, 6)
    assert [int(image.float().mean().round()) for image in train.images] == [255, 0]  # no ink, and no light


def test_images_in_no_class_folder_are_named(tmp_path):
    Image.new("L", (6, 5)).save(tmp_path / "IMG_1.JPG")
    with pytest.raises(UserError, match=r"nor class folders .*; it holds IMG_1.JPG$"):
        source(str(tmp_path))


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_corrupt_files_are_left_out_where_that_is_wanted(class_folders, storage):
    whole = load(class_folders, storage="memory")
    truncate(class_folders)
    (class_folders / "test" / "cat" / "0.png").write_bytes(b"")
    splits = load(class_folders, storage=storage, workers=0, skip_corrupt=True)
    for images, expected, kept in ((splits.train, whole.train, [0, 1, 2, 3, 5]), (splits.test, whole.test, [1, 2, 3])):
        rows = torch.tensor(kept)
        assert torch.equal(images.labels, expected.labels[rows])
        assert torch.equal(images.batch(torch.arange(len(rows)))[0], expected.batch(rows)[0])
    first, second = splits.warnings
    assert re.search(
        r"train: 1 of 6 images cannot be read and are left out .*, the first of them .*dog/1\.png: ", first
    )
    assert second.endswith("test/cat/0.png: the file is empty")
    for file in (class_folders / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"train: none of its 6 images can be read; the first: .*cat/0\.png"):
        load(class_folders, skip_corrupt=True)
