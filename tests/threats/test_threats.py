import numpy as np
import pytest
import torch
from support.cases import cases

from robustcords.config.schema import format_radius, parse_radius
from robustcords.errors import UserError
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel
from robustcords.threats.l2 import L2
from robustcords.threats.linf import Linf


@cases(("text", "value"), [("8/255", 8 / 255), (" 1.5 / 3 ", 0.5), ("0.15", 0.15), (0.15, 0.15), ("0", 0.0)])
def test_radii_are_read(text, value):
    assert ThreatModel(epsilon=text).epsilon == value


@cases("text", ["8/0", "abc", "-8/255", -1.0, float("inf"), float("nan"), "1e999", [1], None])
def test_bad_radii_are_refused(text):
    with pytest.raises(ValueError, match="epsilon"):
        ThreatModel(epsilon=text)


@cases(
    ("value", "text"),
    [(8 / 255, "8/255"), (0.15, "0.15"), (16 / 255, "16/255"), (1.0, "1.0"), (0.2, "0.2"), (0.5, "0.5")],
)
def test_radii_are_written_as_people_write_them(value, text):
    assert format_radius(value) == text
    assert parse_radius(text) == value


def test_projection_linf():
    rng = np.random.default_rng(0)
    x, moved = rng.uniform(size=(4, 3, 2, 2)), rng.normal(size=(4, 3, 2, 2)) * 2
    expected = np.clip(np.clip(moved, x - 0.1, x + 0.1), 0, 1)
    result = ThreatModel(epsilon=0.1).project(torch.from_numpy(moved), torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(), expected)


def test_projection_l2():
    rng = np.random.default_rng(0)
    x, moved = rng.uniform(size=(4, 3, 2, 2)), rng.normal(size=(4, 3, 2, 2)) * 2
    length = np.sqrt(((moved - x) ** 2).sum((1, 2, 3), keepdims=True))
    expected = np.clip(x + (moved - x) * np.minimum(1, 0.7 / length), 0, 1)
    threat = ThreatModel(norm="l2", epsilon=0.7)
    result = threat.project(torch.from_numpy(moved), torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(), expected)
    inside = torch.from_numpy(x + 0.01 * (0.5 - x))
    torch.testing.assert_close(threat.project(inside, torch.from_numpy(x)), inside)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_uniform_start_fills_the_ball(norm):
    x = torch.full((4000, 1, 1, 2), 0.5)
    threat = ThreatModel(norm=norm, epsilon=0.2)
    delta = (threat.uniform_start(x, Noise(1, torch.arange(4000))) - x).view(-1, 2).double().numpy()
    radius = np.abs(delta).max(1) if norm == "linf" else np.sqrt((delta**2).sum(1))
    # In two dimensions a share t^2 of the ball's volume lies within t times its radius.
    shares = [(radius <= 0.2 * t).mean() for t in (0.25, 0.5, 0.75, 1.001)]
    np.testing.assert_allclose(shares, [0.0625, 0.25, 0.5625, 1.0], atol=0.03)


def test_gaussian_start():
    x = torch.full((2000, 1, 2, 2), 0.5)
    delta = ThreatModel().gaussian_start(x, Noise(1, torch.arange(2000))) - x
    assert delta.std().item() == pytest.approx(0.001, rel=0.03)


def test_another_radius_keeps_the_other_options():
    class Columns(Linf):
        """Changes the first columns alone."""

        norm: str = "mine:Columns"
        columns: int = 28

    narrow = Columns(columns=3, epsilon=0.1)
    assert narrow.with_epsilon(0.2) == Columns(columns=3, epsilon=0.2)
    assert narrow.autoattack_norm == "Linf"

    class Half(Columns):
        def project(self, x_adv, x):
            return super().project(x_adv, x)

    assert Half().autoattack_norm is None, "a ball of its own"


def test_a_norm_is_that_of_its_class():
    assert type(ThreatModel(norm="l2")) is type(ThreatModel.model_validate({"norm": "l2"})) is L2
    assert type(ThreatModel()) is type(ThreatModel.model_validate({})) is Linf
    assert type(ThreatModel.model_validate_json('{"norm": "l2", "epsilon": 0.5}')) is L2
    for kind, norm in ((L2, "linf"), (Linf, "l2")):
        with pytest.raises(ValueError, match="is the norm of"):
            kind(norm=norm)
    for norm in (None, 2, "json:JSONDecoder", "json:dumps"):
        with pytest.raises(UserError, match=r"not a subclass of robustcords\.threats\.base:ThreatModel"):
            ThreatModel(norm=norm)
