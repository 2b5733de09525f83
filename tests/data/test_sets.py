"""Folders with more in them than one set: what is meant is read, and what could be meant twice is refused."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from support.made_data import class_folder, picture, table

from robustcords import data
from robustcords.data.images import ImageSet
from robustcords.data.sets import FolderConfig, class_sets, parquet_sets
from robustcords.errors import UserError


def load(root, **options):
    return data.source(str(root))(name=str(root), **options).load()


def brightness(images):
    """Returns the one brightness that all the images have."""
    assert len(images.images.unique()) == 1
    return int(images.images.flatten()[0])


def tables(folder, light, suffix=""):
    """Writes a training and a test split of this brightness as parquet files."""
    table(folder / f"train{suffix}.parquet", [0, 1, 2, 0, 1, 2], light)
    table(folder / f"test{suffix}.parquet", [0, 1, 2], light + 1)


def folders(folder, light, train="train", test="test"):
    """Writes a training and a test split of this brightness as class folders."""
    for split, count, extra in ((train, 2, 0), (test, 1, 1)):
        for name in ("ant", "bee", "cat"):
            class_folder(folder / split / name, count, light + extra)


def one_line(root, message, **options):
    with pytest.raises(UserError, match=message) as error:
        load(root, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [tables, folders])
def test_several_sets_are_refused_and_one_can_be_chosen(tmp_path, write):
    for name, light in (("clean", 10), ("corrupted/fog", 20), ("corrupted/snow", 30)):
        write(tmp_path / name, light)
    one_line(
        tmp_path, r"several sets with a train split \(clean, corrupted/fog, corrupted/snow\).*data\.subset = 'corr"
    )
    for name, light in (("clean", 10), ("corrupted/fog", 20), ("corrupted/snow", 30)):
        for splits in (load(tmp_path, subset=name), load(tmp_path / name)):
            assert (brightness(splits.train), brightness(splits.test)) == (light, light + 1)
            assert (len(splits.train), len(splits.test), splits.notes) == (6, 3, ())


@pytest.mark.parametrize("write", [tables, folders])
def test_the_set_of_the_folder_itself_is_called_by_a_dot(tmp_path, write):
    write(tmp_path, 10)
    write(tmp_path / "fog", 20)
    one_line(tmp_path, r"several sets with a train split \(\., fog\)")
    assert brightness(load(tmp_path, subset=".").train) == 10
    assert brightness(load(tmp_path, subset="fog").train) == 20


@pytest.mark.parametrize("write", [tables, folders])
def test_a_subset_that_is_not_there_is_never_ignored(tmp_path, write):
    write(tmp_path / "clean", 10)
    assert brightness(load(tmp_path, subset="clean").train) == 10
    one_line(
        tmp_path, r"data\.subset: there is no set 'claen'; did you mean 'clean'\? \(one of: clean\)", subset="claen"
    )
    one_line(tmp_path / "clean", r"data\.subset: there is no set 'fog'", subset="fog")


def test_sets_within_a_split(tmp_path):
    for name, light in (("clean", 10), ("fog", 20)):
        for split in ("train", "test"):
            table(tmp_path / split / name / "0000.parquet", [0, 1, 2], light)
    one_line(tmp_path, r"several sets with a train split \(clean, fog\)")
    assert brightness(load(tmp_path, subset="fog").test) == 20


@pytest.mark.parametrize("middle", ["-clean", " clean", "_Clean"])
def test_several_splits_that_look_like_train(tmp_path, middle):
    tables(tmp_path / "tables", 10)
    table(tmp_path / "tables" / f"train{middle}.parquet", [0, 1, 2], 20)
    one_line(tmp_path / "tables", r"several sets with a train split \(\., [Cc]lean\)")
    folders(tmp_path / "folders", 10)
    class_folder(tmp_path / "folders" / f"train{middle}" / "ant", 2)
    one_line(tmp_path / "folders", r"several sets with a train split \(\., [Cc]lean\)")


@pytest.mark.parametrize("other", ["training", "Train", "TRAINING"])
def test_two_folders_of_one_split(tmp_path, other):
    folders(tmp_path, 10)
    class_folder(tmp_path / other / "ant", 2)
    one_line(tmp_path, f"several folders of the train split .*{other}")
    shutil.rmtree(tmp_path / "train")
    for name in ("bee", "cat"):
        class_folder(tmp_path / other / name, 2)
    assert len(load(tmp_path).train) == 6


def test_split_names_in_any_case(tmp_path):
    folders(tmp_path / "folders", 10, "TRAIN", "Val")
    assert len(load(tmp_path / "folders").test) == 3
    tables(tmp_path / "tables", 10)
    for name in ("train", "test"):
        (tmp_path / "tables" / f"{name}.parquet").rename(tmp_path / "tables" / f"{name.upper()}.PARQUET")
    assert len(load(tmp_path / "tables").train) == 6


@pytest.mark.parametrize("write", [tables, folders])
def test_validation_taken_for_test_is_told(tmp_path, write):
    write(tmp_path, 10)
    test = next(path for path in tmp_path.iterdir() if path.name.startswith("test"))
    test.rename(test.with_name(test.name.replace("test", "val")))
    splits = load(tmp_path)
    assert splits.notes == (f"{tmp_path}: there is no test split; tests on validation",)
    assert load(tmp_path, test_split="validation").notes == ()


def test_class_folders_have_a_test_split_by_option(tmp_path):
    folders(tmp_path, 10)
    for name in ("ant", "bee", "cat"):
        class_folder(tmp_path / "val" / name, 1, 50)
    assert brightness(load(tmp_path).test) == 11
    assert brightness(load(tmp_path, test_split="validation").test) == 50
    one_line(tmp_path, r"no split 'val' \(one of: test, train, validation\)", test_split="val")


def test_a_train_and_a_test_split_of_different_sets_are_told(tmp_path):
    table(tmp_path / "clean" / "train.parquet", [0, 1, 2])
    table(tmp_path / "fog" / "test.parquet", [0, 1, 2])
    assert load(tmp_path).notes == (f"{tmp_path}: trains on clean, tests on fog",)
    table(tmp_path / "snow" / "test.parquet", [0, 1, 2])
    one_line(tmp_path, r"several sets with a test split \(fog, snow\)")


def test_parquet_files_and_class_folders_in_one_folder(tmp_path):
    folders(tmp_path, 10)
    tables(tmp_path / "tables", 20)
    one_line(tmp_path, r"holds parquet files \(tables\) and class folders \(\.\)")
    one_line(tmp_path, r"holds parquet files \(tables\) and class folders \(\.\)", subset="tables")
    assert brightness(load(tmp_path / "tables").train) == 20


def test_tables_that_are_of_no_split_do_not_make_it_a_folder_of_tables(tmp_path):
    folders(tmp_path, 10)
    table(tmp_path / "metadata.parquet", [0, 1])
    assert brightness(load(tmp_path).train) == 10
    tables(tmp_path / "tables", 20)
    table(tmp_path / "tables" / "unsupervised.parquet", [0, 1])
    notes = load(tmp_path / "tables").notes
    assert notes == (f"{tmp_path / 'tables'}: 1 parquet files of no split are skipped (unsupervised.parquet)",)


HIDDEN = [".git", "__MACOSX", ".ipynb_checkpoints", "@eaDir", "lost+found", ".cache/deep", "deep/.cache"]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("write", [tables, folders])
def test_hidden_folders_are_left_out_at_any_depth(tmp_path, write, hidden):
    write(tmp_path, 10)
    inside = () if hidden.startswith("deep") else (tmp_path / "train",)  # where "deep" would be a class
    for place in (tmp_path, tmp_path / "deep", *inside):
        tables(place / hidden, 200)
        folders(place / hidden, 200)
    for name in ("ant", "bee") if write is folders else ():
        class_folder(tmp_path / "train" / name / hidden, 1, 200)
    splits = load(tmp_path)
    assert (brightness(splits.train), brightness(splits.test), splits.notes) == (10, 11, ())
    assert (len(splits.train), len(splits.test)) == (6, 3)


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"])
def test_hidden_files_in_class_folders(tmp_path, name):
    folders(tmp_path, 10)
    for place in (tmp_path, tmp_path / "train", tmp_path / "train" / "ant", tmp_path / "test" / "bee"):
        (place / name).write_bytes(b"no image")
    splits = load(tmp_path)
    assert (brightness(splits.train), len(splits.train), splits.notes) == (10, 6, ())


@pytest.mark.parametrize("name", ["._train.parquet", ".train.parquet", "._test.parquet"])
def test_hidden_tables(tmp_path, name):
    tables(tmp_path, 10)
    (tmp_path / name).write_bytes(b"no table")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / name).write_bytes(b"no table")
    splits = load(tmp_path)
    assert (brightness(splits.train), len(splits.train), splits.notes) == (10, 6, ())


def test_a_zip_made_on_a_mac(tmp_path):
    """Archives from macOS hold a second tree, of the same names, that holds no images."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for split in ("train", "test"):
            for name in ("ant", "bee"):
                content = io.BytesIO()
                picture(10).save(content, "PNG")
                archive.writestr(f"set/{split}/{name}/0.png", content.getvalue())
                archive.writestr(f"__MACOSX/set/{split}/{name}/._0.png", b"\0\5\x16\7")
        archive.extractall(tmp_path / "out")
    splits = load(tmp_path / "out")
    assert (len(splits.train), len(splits.test), splits.notes) == (2, 2, ())


def test_a_folder_that_is_hidden_itself_can_be_named(tmp_path):
    folders(tmp_path / ".sets" / "one", 10)
    assert len(load(tmp_path / ".sets" / "one").train) == 6


def test_links_that_lead_back_by_way_of_each_other(tmp_path):
    for kind, write in (("tables", tables), ("folders", folders)):
        write(tmp_path / kind, 10)
        for one, other in (("a", "b"), ("b", "a")):
            (tmp_path / kind / one).mkdir()
            (tmp_path / kind / one / "link").symlink_to(tmp_path / kind / other)
        with pytest.raises(UserError, match="a link to a folder that contains it"):
            load(tmp_path / kind)


def test_a_link_to_a_set_is_another_name_of_it(tmp_path):
    tables(tmp_path / "v1", 10)
    (tmp_path / "latest").symlink_to(tmp_path / "v1")
    one_line(tmp_path, r"several sets with a train split \(latest, v1\)")
    assert brightness(load(tmp_path, subset="latest").train) == 10


def test_classes_called_like_splits_are_classes(tmp_path):
    for split in ("train", "test"):
        for name in ("bus", "train", "test", "valid"):
            class_folder(tmp_path / split / name, 1)
    assert load(tmp_path).train.classes == ("bus", "test", "train", "valid")
    assert class_sets(tmp_path / "train") == {}


def test_logs_of_training_are_no_split(tmp_path):
    folders(tmp_path, 10)
    (tmp_path / "training-logs" / "monday").mkdir(parents=True)
    (tmp_path / "training-logs" / "monday" / "log.txt").write_text("loss 2.3")
    assert len(load(tmp_path).train) == 6


def test_files_beside_the_class_folders_are_counted(tmp_path):
    folders(tmp_path, 10)
    for number in range(7):
        picture().save(tmp_path / "train" / f"{number}.png")
    assert load(tmp_path).notes == (
        f"{tmp_path}/train: 7 files in no class folder are skipped (0.png, 1.png, 2.png, 3.png, 4.png and 2 more)",
    )


def test_sets_within_a_split_of_class_folders_are_told(tmp_path):
    for split in ("train", "test"):
        for name in ("clean", "fog"):
            for label in ("ant", "bee"):
                class_folder(tmp_path / split / name / label, 1)
    assert load(tmp_path).notes == (
        f"{tmp_path}/train: the classes are clean, fog; the folders in each of them (ant, bee) are not",
    )


def test_one_folder_in_every_class_is_no_other_set(tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            class_folder(tmp_path / split / name / "images", 1)
    assert load(tmp_path).notes == ()


def test_classes_that_have_no_images_in_a_split_are_named(tmp_path):
    folders(tmp_path / "folders", 10)
    shutil.rmtree(tmp_path / "folders" / "test" / "bee")
    assert load(tmp_path / "folders").notes == (f"{tmp_path / 'folders'}/test: 1 of 3 classes have no images (bee)",)
    table(tmp_path / "tables" / "train.parquet", [0, 2, 0, 2], names=("ant", "bee", "cat", "dog"))
    table(tmp_path / "tables" / "test.parquet", [0, 1, 2, 3], names=("ant", "bee", "cat", "dog"))
    splits = load(tmp_path / "tables")
    assert splits.train.classes == ("ant", "bee", "cat", "dog")
    assert splits.notes == (f"{tmp_path / 'tables'}, train split: 2 of 4 classes have no images (bee, dog)",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3, 3], r"train split: labels go from 1 to 3, and no image has 0: classes without names .*ClassLabel"),
        ([0, 1, 3, 3, 6, 6, 6], r"train split: labels go from 0 to 6, and no image has 2, 4, 5: "),
    ],
)
def test_labels_that_leave_classes_empty(tmp_path, labels, message):
    table(tmp_path / "train.parquet", labels)
    table(tmp_path / "test.parquet", labels)
    one_line(tmp_path, message)


def test_a_test_set_may_lack_classes_but_not_have_more(tmp_path):
    table(tmp_path / "train.parquet", [0, 1, 2])
    table(tmp_path / "test.parquet", [2, 2])
    splits = load(tmp_path)
    assert splits.test.labels.tolist() == [2, 2]
    assert splits.notes == (f"{tmp_path}, test split: 2 of 3 classes have no images (0, 1)",)
    table(tmp_path / "test.parquet", [2, 3])
    one_line(tmp_path, r"test\.parquet, row 1: the label 3 is out of range \(allowed: 0 to 2\)")


def test_labels_of_a_dataset_without_classes():
    pairs = [(torch.zeros(1, 2, 2), label) for label in (1, 2, 2)]
    with pytest.raises(UserError, match=r"labels go from 1 to 2, and no image has 0: .*in Python as classes="):
        ImageSet.from_dataset(pairs)
    for names in ("abc", np.array(["a", "b", "c"])):
        assert ImageSet.from_dataset(pairs, classes=names).classes == ("a", "b", "c")
    assert ImageSet.from_dataset(pairs, classes=torch.tensor([4, 5, 6])).classes == ("4", "5", "6")


def test_floats_may_leave_the_range_by_a_rounding_step():
    steps = torch.tensor([-1.0, 1.0]).mul(1e-7).add(torch.tensor([0.0, 1.0])).view(1, 1, 2)
    for image in (steps, steps.double(), torch.full((1, 1, 2), 1.0078125, dtype=torch.bfloat16)):
        images = ImageSet.from_dataset([(image, 0), (image, 1)]).images
        assert (images.amin() >= 0, images.amax() <= 1, images.dtype) == (True, True, torch.float32)
    with pytest.raises(UserError, match=r"pixel values from 0 to 1\.001 are outside \[0, 1\]"):
        ImageSet.from_dataset([(torch.tensor([[[0.0, 1.001]]]), 0)])


def test_an_empty_name_is_no_option():
    with pytest.raises(ValueError, match="at least 1 character"):
        FolderConfig(name="x", subset="")


def test_what_nothing_says_the_split_of_is_no_set(tmp_path):
    table(tmp_path / "all.parquet", [0, 1])
    assert parquet_sets(tmp_path) == {}
    one_line(tmp_path, "no parquet files called train")
