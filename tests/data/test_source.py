import json
from pathlib import Path

import pytest
from support.cases import cases
from support.command_line import call, settings
from support.made_data import classes_as_folders

from robustcords import data
from robustcords.data.base import DataSource
from robustcords.data.digits import Digits
from robustcords.data.folder import Folder
from robustcords.data.parquet import Parquet
from robustcords.data.vision import Vision
from robustcords.errors import UserError


@cases("name", data.DATA)
def test_every_registered_name_is_a_source(name):
    cls = data.source(name)
    assert issubclass(cls, DataSource)
    assert cls(name=name).config.name == name


def test_names_outside_the_registry(class_folders, tmp_path, monkeypatch):
    assert data.source("digits") is Digits
    assert data.source("robustcords.data.vision:Vision") is Vision
    assert data.source("owner/data-set_1.0") is Parquet
    assert data.source(str(class_folders)) is Folder
    (tmp_path / "tables" / "train").mkdir(parents=True)
    (tmp_path / "tables" / "train" / "0.parquet").write_bytes(b"")
    assert data.source(str(tmp_path / "tables")) is Parquet
    # A folder that exists wins over a hub id of the same form, and a registered name over a folder.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    class_folders.rename(tmp_path / "owner" / "set")
    assert data.source("owner/set") is Folder
    (tmp_path / "owner" / "set").rename(tmp_path / "digits")
    assert data.source("digits") is Digits
    assert data.source("./digits") is Folder


@cases(
    ("name", "message"),
    [
        ("cifar", "unknown data 'cifar'; did you mean 'cifar10'"),
        ("/no/such/folder", "no such folder"),
        ("./absent", "no such folder"),
        ("a/b/c", "no such folder"),
        ("no_such_module:Class", "cannot import 'no_such_module'"),
        ("robustcords.data.vision:Visoin", "has no 'Visoin'; did you mean 'Vision'"),
        ("robustcords.rng:Noise", "not a subclass of robustcords.data.base:DataSource"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(UserError, match=message) as error:
        data.source(name)
    assert "\n" not in str(error.value)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(UserError, match=r"holds neither parquet files .* nor class folders .*; it holds "):
        data.source(str(tmp_path))


def test_what_there_is_to_know_of_the_images_is_told_by_every_command_that_reads_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classes_as_folders(tmp_path / "set", train=3).joinpath("test").rename(tmp_path / "set" / "val")
    (tmp_path / "set" / "train" / "ant" / "broken.png").write_bytes(b"no image")
    folder = tmp_path / "set"
    told = f"note: {folder}: there is no test split; tests on validation"
    left_out = f"{folder}/train: 1 of 10 images cannot be read and are left out (data.skip_corrupt), the first of them "
    left_out += f"{folder}/train/ant/broken.png: "
    small = {
        "data__name": "./set",
        "data__skip_corrupt": "true",
        "model__width": 4,
        "train__epochs": 1,
        "train__memory_format": "contiguous",
    }
    changes = settings(
        **small, attack__steps=1, selector__select_every=1, evaluation__pgd="false", evaluation__autoattack="false"
    )
    answer = call(capsys, "run", "digits_mart", "--output", "run", *changes)
    assert (answer.status, answer.err.count(told), answer.err.count(f"warning: {left_out}")) == (0, 1, 1), answer.err
    assert json.loads(Path("run/report.json").read_text())["training"]["warnings"][0].startswith(left_out)
    answer = call(capsys, "evaluate", "run")
    assert (answer.status, answer.err.count(told), answer.err.count(f"warning: {left_out}")) == (0, 1, 1), answer.err
    weights = ("--weights", "run/weights/last.safetensors", "--output", "chosen.npz")
    answer = call(capsys, "select", "run/recipe.toml", *weights)
    assert (answer.status, answer.err.count(told), answer.err.count(f"warning: {left_out}")) == (0, 1, 1), answer.err
