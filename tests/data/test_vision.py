import inspect
import json
import struct

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image
from support.made_data import class_folder, classes_as_folders, table
from torchvision import datasets

from robustcords.data.catalogue import SETS
from robustcords.data.folder import Folder
from robustcords.data.vision import Vision, cache_folder
from robustcords.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("ROBUSTCORDS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_idx(file, array):
    """Writes an array of bytes as the MNIST files are (LeCun et al. 1998)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(header + array.tobytes())


def write_mnist(root, images, labels, prefixes=("train", "t10k")):
    for prefix in prefixes:
        write_idx(root / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / f"{prefix}-labels-idx1-ubyte", labels)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("name", SETS)
def test_every_entry_is_one_of_torchvisions(name):
    usual = SETS[name]
    cls = getattr(datasets, usual.cls)
    accepts_download = False
    for owner in cls.__mro__[:-1]:
        parameters = inspect.signature(owner.__init__).parameters
        accepts_download |= "download" in parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    for arguments in usual.splits:
        inspect.signature(cls.__init__).bind(None, "root", **arguments)
    assert usual.splits[0] != usual.splits[1]
    assert usual.cls in {"ImageNet"} or accepts_download == usual.download


def test_reads_torchvisions_files_from_path(tmp_path, images, capsys):
    labels = np.arange(12, dtype=np.uint8) % 10
    write_mnist(tmp_path / "files" / "FashionMNIST" / "raw", images, labels)
    splits = Vision(name="fashion_mnist", path=str(tmp_path / "files")).load()
    for part in (splits.train, splits.test):
        assert torch.equal(part.images, torch.from_numpy(images).unsqueeze(1))
        assert part.labels.tolist() == labels.tolist()
        assert part.classes[9] == "Ankle boot"
    assert capsys.readouterr().out == ""


def test_reads_torchvisions_files_from_the_cache(images):
    labels = np.arange(12, dtype=np.uint8) % 10
    write_mnist(cache_folder() / "mnist" / "MNIST" / "raw", images, labels)
    assert Vision(name="mnist").load().train.labels.tolist() == labels.tolist()


def test_labels_that_start_at_one(tmp_path, images):
    raw = tmp_path / "EMNIST" / "raw"
    letters = np.arange(12, dtype=np.uint8) * 2 + 1
    write_mnist(raw, images, letters, prefixes=("emnist-letters-train", "emnist-letters-test"))
    train = Vision(name="emnist_letters", path=str(tmp_path)).load().train
    assert train.labels.tolist() == list(range(0, 24, 2))
    assert train.classes == tuple("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture
def photographs(tmp_path):
    """Imagenette as torchvision keeps it: two classes of two photographs each, the first one by a turned camera."""
    for split in ("train", "val"):
        for number, name in enumerate(("n01440764", "n02102040")):
            folder = tmp_path / "imagenette2" / split / name
            folder.mkdir(parents=True)
            exif = Image.Exif()
            for each in range(2):
                picture = Image.linear_gradient("L").resize((12, 8)).convert("RGB")
                exif[0x112] = 6 if number == each == 0 else 1
                picture.save(folder / f"{each}.jpeg", exif=exif)
    return tmp_path


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_torchvisions_photographs_are_decoded_as_others(photographs, storage):
    config = {"image_size": 8, "storage": storage, "workers": 0}
    found = Vision(name="imagenette", path=str(photographs), **config).load()
    expected = Folder(name=str(photographs / "imagenette2"), **config).load()
    assert found.train.classes == ("tench, Tinca tinca", "English springer, English springer spaniel")
    for one, other in ((found.train, expected.train), (found.test, expected.test)):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.batch(torch.arange(4))[0], other.batch(torch.arange(4))[0])
    file = photographs / "imagenette2" / "val" / "n02102040" / "1.jpeg"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=f"^{file}: the file is empty"):
        Vision(name="imagenette", path=str(photographs), **config).load().test.batch(torch.tensor([3]))


def test_clevr_counts_three_to_ten_objects(tmp_path):
    root = tmp_path / "clevr" / "CLEVR_v1.0"
    (root / "scenes").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        scenes = [{"image_filename": f"{count:02d}.png", "objects": [{}] * count} for count in range(3, 11)]
        for scene in scenes:
            Image.new("RGB", (4, 4)).save(root / "images" / split / scene["image_filename"])
        (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    assert Vision(name="clevr", path=str(tmp_path)).load().test.labels.tolist() == list(range(8))


def test_reads_class_folders_at_path(class_folders):
    assert Vision(name="cifar10", path=str(class_folders)).load().train.classes == ("cat", "dog")


def test_other_sets_beside_torchvisions_files_are_not_read(tmp_path, images):
    labels = np.arange(12, dtype=np.uint8) % 10
    write_mnist(tmp_path / "FashionMNIST" / "raw", images, labels)
    for split in ("train", "test"):
        table(tmp_path / "other" / f"{split}.parquet", [0, 1])
        class_folder(tmp_path / "third" / split / "ant", 1)
    assert len(Vision(name="fashion_mnist", path=str(tmp_path)).load().train) == 12
    table(tmp_path / "train.parquet", [0, 1])
    with pytest.raises(UserError, match="holds parquet files and torchvision's own; name the folder of one of them"):
        Vision(name="fashion_mnist", path=str(tmp_path)).load()


def test_a_set_below_path_is_named(tmp_path):
    for split in ("train", "test"):
        table(tmp_path / "other" / f"{split}.parquet", [0, 1])
    told = f"cifar10 is read from {tmp_path / 'other'}"
    fewer = "has 2 classes, where cifar10 has 10"
    assert Vision(name="cifar10", path=str(tmp_path)).load().notes == (told, f"{tmp_path}: {fewer}")
    assert Vision(name="cifar10", path=str(tmp_path), subset="other").load().notes == (f"{tmp_path}: {fewer}",)
    assert Vision(name="cifar10", path=str(tmp_path / "other")).load().notes == (f"{tmp_path / 'other'}: {fewer}",)


def test_several_sets_at_path(tmp_path):
    for number, name in enumerate(("clean", "fog")):
        for split in ("train", "test"):
            table(tmp_path / name / f"{split}.parquet", [0, 1], number)
    with pytest.raises(UserError, match=r"several sets with a train split \(clean, fog\)"):
        Vision(name="cifar10", path=str(tmp_path)).load()
    assert Vision(name="cifar10", path=str(tmp_path), subset="fog").load().test.images.unique().tolist() == [1]
    classes_as_folders(tmp_path / "third", brightness=2)
    with pytest.raises(UserError, match=r"parquet files \(clean, fog\) and class folders \(third\)"):
        Vision(name="cifar10", path=str(tmp_path)).load()
    for subset, brightness in (("clean", 0), ("fog", 1), ("third", 2)):
        splits = Vision(name="cifar10", path=str(tmp_path), subset=subset).load()
        assert splits.test.images.unique().tolist() == [brightness]
    classes_as_folders(tmp_path / "fog", brightness=3)
    with pytest.raises(UserError, match=r"parquet files \(fog\) and class folders \(fog\)"):
        Vision(name="cifar10", path=str(tmp_path), subset="fog").load()


@pytest.mark.parametrize("option", ["subset", "test_split", "image_column", "label_column"])
def test_options_that_mean_nothing_to_torchvisions_files(tmp_path, images, option):
    labels = np.arange(12, dtype=np.uint8) % 10
    write_mnist(tmp_path / "MNIST" / "raw", images, labels)
    write_mnist(cache_folder() / "mnist" / "MNIST" / "raw", images, labels)
    for path in (str(tmp_path), None):
        with pytest.raises(UserError, match=f"data.{option}: does not apply to torchvision's own files of 'mnist'"):
            Vision(name="mnist", path=path, **{option: "x"}).load()


def test_columns_mean_nothing_to_class_folders(class_folders):
    with pytest.raises(UserError, match=r"data\.label_column: does not apply to class folders of 'cifar10'"):
        Vision(name="cifar10", path=str(class_folders), label_column="label").load()
    with pytest.raises(UserError, match="there is no set 'fog'"):
        Vision(name="cifar10", path=str(class_folders), subset="fog").load()


@pytest.mark.parametrize("given", [True, False])
def test_a_failed_download_is_one_line(tmp_path, given, capfd):
    root = tmp_path / "files"
    root.mkdir()
    with pytest.raises(UserError) as error:
        Vision(name="mnist", path=str(root) if given else None).load()
    message = str(error.value)
    where = root if given else cache_folder() / "mnist"
    assert message.startswith(f"data 'mnist': not usable in {where}, and downloading it failed: ")
    assert "data.path can name a folder" in message
    assert "\n" not in message
    assert capfd.readouterr().out == ""


def test_a_set_that_cannot_be_downloaded():
    with pytest.raises(UserError, match=r"'fer2013': not usable in .* and torchvision cannot download it"):
        Vision(name="fer2013").load()


def test_damaged_files_are_one_line(tmp_path, images):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw, images, np.arange(12, dtype=np.uint8) % 10)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(UserError, match="'mnist': not usable in") as error:
        Vision(name="mnist", path=str(tmp_path)).load()
    assert "\n" not in str(error.value)


def test_path_has_to_exist(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: '.*absent' does not exist"):
        Vision(name="cifar10", path=str(tmp_path / "absent")).load()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("name", "crop", "flip"),
    [("cifar10", 4, True), ("cifar100", 4, True), ("svhn", 4, False), ("mnist", 0, False), ("fashion_mnist", 0, False)],
)
def test_usual_augmentation(name, crop, flip):
    assert (Vision(name=name).crop, Vision(name=name).flip) == (crop, flip)


def test_refuses_names_that_torchvision_has_not():
    with pytest.raises(pydantic.ValidationError, match="unknown torchvision set 'cifar11'; did you mean 'cifar10'"):
        Vision(name="cifar11")


def test_cache_folder_is_an_absolute_one(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "robustcords"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "robustcords"
