import errno
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from robustcords.errors import RunError
from robustcords.storage.checkpoint import Checkpoints, pack, restore_optimizer, unpack

STATE = {
    "number": 1,
    "half": 0.5,
    "none": None,
    "names": ["a", "b"],
    "weights": {"w": torch.arange(6.0).view(2, 3).t(), "n": torch.tensor(3)},
    "by_index": {0: {"momentum": torch.ones(2)}, 1: {"momentum": torch.zeros(2)}},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def test_state_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, STATE)
    path, state = checkpoints.latest()
    assert path.name == "step_00000007"
    assert same(STATE, state)


def test_only_plain_values_are_kept():
    with pytest.raises(TypeError, match="/a/0: a checkpoint cannot keep a set"):
        pack({"a": [{1}]}, {})
    tensors = {}
    assert unpack(pack((1, [2]), tensors), tensors) == [1, [2]]


def test_last_ones_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 30):
        checkpoints.save(step, {"step": step})
    assert [path.name for path in checkpoints.paths()] == ["step_00000002", "step_00000030"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def damage_truncate(path):
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def damage_flip(path):
    content = bytearray((path / "state.json").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.json").write_bytes(bytes(content))


def damage_remove(path):
    (path / "tensors.safetensors").unlink()


def damage_manifest(path):
    (path / "manifest.json").write_text("{")


def damage_manifest_list(path):
    (path / "manifest.json").write_text(json.dumps([1]))


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_remove, damage_manifest, damage_manifest_list])
def test_damaged_checkpoints_are_skipped_and_named(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    damage(checkpoints.save(2, STATE))
    with pytest.warns(UserWarning, match="step_00000002 is damaged"):
        path, _ = checkpoints.latest()
    assert path.name == "step_00000001"


def test_an_unfinished_one_is_not_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".step_00000003").mkdir()
    assert checkpoints.latest() is None
    checkpoints.save(3, STATE)
    assert checkpoints.latest()[0].name == "step_00000003"


class Killed(BaseException):
    """The end of the process."""


class Crashes:
    """Ends the process at the n-th call that moves or deletes folders, before it, in the middle of it or after it."""

    def __init__(self, patch, number, moment):
        self.left, self.moment = number, moment
        self.rename, self.rmtree = Path.rename, shutil.rmtree
        patch.setattr(Path, "rename", lambda path, target: self.call(self.rename, path, target))
        patch.setattr(shutil, "rmtree", lambda path, **options: self.call(self.rmtree, path, **options))

    def call(self, original, path, *arguments, **options):
        self.left -= 1
        if self.left == 0:
            if self.moment == "during" and original is self.rmtree:
                sorted(path.iterdir())[0].unlink()
            elif self.moment == "after":
                original(path, *arguments, **options)
            raise Killed
        return original(path, *arguments, **options)


def saved_or_killed(folder, step, value, number, moment):
    """Saves in a process that is killed; returns whether it was."""
    with pytest.MonkeyPatch.context() as patch:
        crashes = Crashes(patch, number, moment)
        try:
            Checkpoints(folder, keep=1).save(step, {"value": value})
        except Killed:
            return True
        assert crashes.left > 0
        return False


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("first", range(1, 4))
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, first, moment):
    for second in range(1, 7):
        folder, value = tmp_path / str(second), 0
        Checkpoints(folder, keep=1).save(1, {"value": value})
        # The same step twice over, as at the end of an epoch in which a run was stopped; then the next one.
        for step, number in ((1, first), (1, second), (2, second)):
            killed = saved_or_killed(folder, step, value + 1, number, moment)
            path, state = Checkpoints(folder, keep=1).latest()
            assert state["value"] in ({value, value + 1} if killed else {value + 1})
            value = state["value"]
            assert path in Checkpoints(folder, keep=1).paths()
        Checkpoints(folder, keep=1).save(3, STATE)
        assert [path.name for path in folder.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize(
    "kind", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.1)]
)
def test_an_optimiser_goes_on_as_if_nothing_had_happened(tmp_path, kind):
    def made():
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return layer, kind(layer.parameters())

    def step(layer, optimizer, seed):
        x = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.random.fork_rng():
        layer, optimizer = made()
        resumed, resumed_optimizer = made()
    step(layer, optimizer, 1)
    Checkpoints(tmp_path).save(1, {"model": layer.state_dict(), "optimizer": optimizer.state_dict()})
    step(layer, optimizer, 2)
    _, state = Checkpoints(tmp_path).latest()
    resumed.load_state_dict(state["model"])
    restore_optimizer(resumed_optimizer, state["optimizer"])
    step(resumed, resumed_optimizer, 2)
    assert torch.equal(layer.weight, resumed.weight)
    buffers = [value for values in resumed_optimizer.state.values() for value in values.values() if value.dim() == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in buffers)


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_saved_after_falling_back_stays(tmp_path, keep):
    kept = Checkpoints(tmp_path, keep=keep)
    for step in (10, 50, 100):
        Checkpoints(tmp_path, keep=3).save(step, {"step": step})
    for step in (50, 100):
        (tmp_path / f"step_{step:08d}" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="is damaged and was skipped"):
        assert kept.latest()[1] == {"step": 10}
    for step in (20, 30):
        assert kept.save(step, {"step": step}).is_dir()
    assert kept.latest() == (tmp_path / "step_00000030", {"step": 30})
    assert len(kept.paths()) == keep
    assert [path.name for path in kept.paths()] == [f"step_{step:08d}" for step in (20, 30)][-keep:]


def test_one_that_cannot_be_read_just_now_is_not_passed_over(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save(10, {"step": 10})

    def fails(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(RunError, match=r"step_00000010: cannot be read \(Input/output error\)$"):
        kept.latest()


def test_state_that_is_nested_too_deeply_is_damage(tmp_path):
    kept = Checkpoints(tmp_path)
    path = kept.save(10, {"step": 10})
    nested = b'{"a":' * 900 + b"1" + b"}" * 900
    (path / "state.json").write_bytes(nested)
    sums = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**sums, "state.json": hashlib.sha256(nested).hexdigest()}))
    with pytest.warns(UserWarning, match="damaged"):
        assert kept.latest() is None
