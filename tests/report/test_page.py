from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import BULLET, GLISTER, make_run
from PIL import Image
from small_study import METHODS
from support.command_line import call, contents

from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.experiments import adversarial_pictures
from robustcords.report import chart, comparison_charts, page, training_charts
from robustcords.report.comparison import compare
from robustcords.report.comparison_tables import Cell, Grid, Section
from robustcords.report.runs import find_runs, load_run


class Page(HTMLParser):
    """What a page is made of.

    Attributes:
        tags: every tag with its attributes.
        text: what a reader sees, without scripts and styles.
        open: tags that have not ended yet.
    """

    VOID = ("meta", "link", "img", "br", "path", "circle", "rect")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open[-1:]):
            self.text += data

    def figures(self) -> dict[str, Any]:
        found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', self.source, re.S)
        assert found
        return dict(json.loads(found[1]))


def test_page_is_whole_and_asks_for_nothing(written: Path):
    found = Page(written)
    assert found.open == []
    assert written.stat().st_size < 6e6
    addresses = [value for _, attributes in found.tags for key, value in attributes.items() if key in {"src", "href"}]
    assert addresses
    assert all(value and value.startswith(("#", "data:")) for value in addresses)
    anchors = {attributes.get("id") for _, attributes in found.tags}
    assert {value[1:] for value in addresses if value and value.startswith("#")} <= anchors
    policy = next(a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none'; img-src data: blob:;")


def test_page_shows_every_method_and_number(written: Path, study: Path):
    found = Page(written)
    runs = {run.path.name: run.report for run in find_runs([study])}
    assert runs.keys() == {*METHODS, "full-1"}
    text = found.text.replace("\u00a0", " ")
    for name in ("mart, full data", "mart, random 30 %", "mart, random 60 %", "mart, adv-glister 30 %, Bullet"):
        assert name in text
    for name in ("random30", "glister"):
        for entry in runs[name].evaluation.values():
            assert all(f"{100 * value:.2f}" in text for value in (entry.clean, *entry.pgd.values()) if value)
    for file in (written.with_suffix(".md"), written.with_suffix(".csv")):
        assert "mart, adv-glister 30 %, Bullet" in file.read_text()


def test_every_chart_is_there_and_valid(written: Path):
    from plotly.graph_objects import Figure

    figures = Page(written).figures()
    names = ("decides", "curve-loss", "curve-clean", "curve-robust", "fraction-0", "time", "overlap", "dynamics-")
    assert all(any(key.startswith(name) for key in figures) for name in names)
    for figure in figures.values():
        assert Figure(figure).data  # raises where a property does not exist


@pytest.mark.parametrize(("classes", "shown"), [([30, 30, 31], False), ([10, 50, 30], True)])
def test_a_map_of_the_classes_is_there_where_it_shows_something(tmp_path: Path, classes: list[int], shown: bool):
    path = make_run(tmp_path / "run", GLISTER)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows[2]["selection"] = {"classes": classes}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.write(compare(find_runs([path])), tmp_path / "page.html")
    found = Page(tmp_path / "page.html")
    assert ("balance-0" in found.figures()) == shown
    assert ("Every class has the same share of each selection" in found.text) != shown
    if shown:
        (trace,) = found.figures()["balance-0"]["data"]
        assert [row[0] for row in trace["z"]] == pytest.approx([1 / 3, 5 / 3, 1])


def test_tables_and_pictures_can_be_read_aloud(written: Path):
    found = Page(written)
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in found.tags if tag == "th")
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    adversarial, selected = 4 * 3 * 3, 3 * 2 * 3  # methods, images of each example or kind, images
    assert len(images) == adversarial + selected
    assert all(attributes["alt"] for attributes in images)
    assert all(attributes["aria-label"] for _, attributes in found.tags if attributes.get("class") == "plot")
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_what_users_name_is_escaped(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    make_run(tmp_path / evil.replace("/", "_"), BULLET, {"loss": {"name": f"mine:{evil}"}})
    make_run(tmp_path / "b", {"loss": {"name": f"mine:{evil}"}, "data": {"name": '"><img src=x onerror=alert(1)>'}})
    comparison = compare(find_runs([tmp_path]), left_out=[evil])
    output = tmp_path / "page.html"
    page.write(comparison, output, [Section(evil, [Grid(evil, [evil], [(evil, [Cell(evil)])])], [evil])])
    found = Page(output)
    assert sum(tag == "script" for tag, _ in found.tags) == 3
    assert not any(tag == "img" for tag, _ in found.tags)
    assert found.text.count(evil) >= 5
    figures = json.dumps(found.figures())
    assert "&lt;script&gt;" in figures
    assert "<script>" not in figures.replace("\\u003c", "<")
    assert evil not in output.with_suffix(".md").read_text()


def test_runs_without_anything_but_a_report_give_a_page(study: Path, tmp_path: Path):
    for name in ("full", "glister"):
        (tmp_path / name).mkdir()
        for file in ("recipe.toml", "report.json"):
            shutil.copy(study / name / file, tmp_path / name / file)
    comparison = compare(find_runs([tmp_path]))
    pictures = adversarial_pictures.pictures(comparison, 2)
    page.write(comparison, tmp_path / "page.html", pictures=pictures)
    text = Page(tmp_path / "page.html").text
    assert "No images, as the run directory has no weights/: mart, full data; mart, adv-glister 30 %, Bullet." in text
    assert "metrics.jsonl has 0 of the 3 epochs" in text
    assert "No run has metrics.jsonl." in text


def test_pictures_are_of_the_attack(study: Path):
    run = load_run(study / "glister")
    found = adversarial_pictures.pictures(compare([run]), 12)
    assert found.notes == []
    (name, images), *_ = found.shown
    assert name == "mart, adv-glister 30 %, Bullet, seed 0, last weights"
    assert sorted(image.label for image in images[:10]) == list("0123456789")
    for image in images:
        clean, adversarial, difference = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))), dtype=float) / 255
            for address in (image.clean, image.adversarial, image.difference)
        )
        assert clean.shape == (8, 8)
        change = adversarial - clean
        assert 0 < np.abs(change).max() <= 0.15 + 1 / 255
        assert np.allclose(difference, 0.5 + change / 0.3, atol=0.02)


def test_thumbnails_are_of_what_the_last_selection_kept_and_left_out(study: Path, tmp_path: Path):
    run = load_run(study / "glister")
    comparison = compare([run])
    found = adversarial_pictures.pictures(comparison, 10)
    (selection,) = found.selections
    assert selection.name == "mart, adv-glister 30 %, Bullet, seed 0, selection of epoch 3"
    images = adversarial_pictures.build.data(adversarial_pictures.load(run.path / "recipe.toml"))
    last = set(run.selections[-1].indices.tolist())
    whole = images.source.load().train
    for thumbnails, inside in ((selection.kept, True), (selection.left_out, False)):
        rows = [row for row in images.train.numbers.tolist() if (row in last) is inside]
        addresses = {adversarial_pictures.address(pixels) for pixels in whole.batch(torch.tensor(rows))[0]}
        assert {each.image for each in thumbnails} <= addresses
        assert sorted(each.label for each in thumbnails) == list("0123456789")
    page.write(comparison, tmp_path / "page.html", pictures=found)
    assert sum(tag == "img" for tag, _ in Page(tmp_path / "page.html").tags) == 30 + 20


def test_pictures_that_cannot_be_made_are_a_note(study: Path, tmp_path: Path):
    shutil.copytree(study / "full", tmp_path / "full")
    (tmp_path / "full/weights/last.safetensors").write_bytes(b"no tensors")
    found = adversarial_pictures.pictures(compare([load_run(tmp_path / "full")]), 2)
    assert found.shown == []
    assert len(found.notes) == 1
    assert "not a safetensors file" in found.notes[0]
    assert adversarial_pictures.pictures(compare([load_run(study / "full")]), 0).shown == ()


def test_large_and_odd_images_are_shown_small():
    for channels, mode in ((1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")):
        found = adversarial_pictures.address(torch.rand(channels, 300, 200))
        image = Image.open(io.BytesIO(base64.b64decode(found.split(",")[1])))
        assert (image.size, image.mode) == ((64, 96), mode)


def test_chosen_images_are_of_different_classes():
    labels = torch.tensor([0, 0, 2, 1, 2, 0])
    images = ImageSet(torch.zeros(6, 1, 1, 1), labels, ("a", "b", "c"))
    assert adversarial_pictures.chosen(images, 4).tolist() == [0, 2, 3, 1]
    assert len(adversarial_pictures.chosen(images, 99)) == 6


def test_overlap_and_class_balance_by_hand(study: Path):
    run = load_run(study / "random30")
    before, now, after = (set(selection.indices.tolist()) for selection in run.selections)
    expected = {1: len(before & now) / len(now), 2: len(now & after) / len(after)}
    assert training_charts.overlaps([run]) == pytest.approx(expected)
    labels = (
        adversarial_pictures.build.data(adversarial_pictures.load(run.path / "recipe.toml")).source.load().train.labels
    )
    told = [row.selection and row.selection.classes for row in run.rows]
    counted = [labels[torch.from_numpy(s.indices)].bincount(minlength=10).tolist() for s in run.selections]
    assert told == [None, *counted[1:]]


def test_the_plot_that_decides_by_hand(tmp_path: Path):
    make_run(tmp_path / "full", seconds=60)
    fast = {"clean": [1, 1, 1, 1], "PGD 0.15": [1, 1, 1, 0], "AutoAttack 0.15": [1, 1, 0, 0]}
    make_run(tmp_path / "glister", GLISTER, seconds=30, right=fast)
    (shown,) = comparison_charts.robustness(compare(find_runs([tmp_path]))).charts
    front, full, glister = shown.figure["data"]
    assert (full["x"], full["y"]) == ([4.0], [25.0])  # minutes, percent
    assert (glister["x"], glister["y"]) == ([2.0], [50.0])
    assert (front["x"], front["y"]) == ([2.0], [50.0])
    assert "AutoAttack standard 0.15" in shown.figure["layout"]["yaxis"]["title"]["text"]
    assert shown.figure["layout"]["xaxis"]["type"] == "linear"


def test_methods_look_different():
    looks = [chart.style(number) for number in range(40)]
    assert len(set(looks)) == 40
    assert all(page._SYMBOLS[look.symbol] and page._DASHES[look.dash] for look in looks)


def test_dynamics_come_from_the_tracker_else_from_bullet(tmp_path: Path):
    path = make_run(tmp_path / "run", BULLET)
    counts = {"outlier": 1, "boundary": 1, "robust": 2}
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]

    def shown(**extra: object) -> chart.Chart:
        (path / "metrics.jsonl").write_text("".join(json.dumps(row | extra) + "\n" for row in rows))
        return training_charts.dynamics(compare([load_run(path)])).charts[0]

    bullet = shown(counts=counts)
    assert "Bullet-Train sorted" in bullet.caption
    assert [trace["y"] for trace in bullet.figure["data"]] == [[25.0] * 4, [25.0] * 4, [50.0] * 4]
    tracked = shown(counts=counts, dynamics={"outlier": 0, "boundary": 1, "robust": 3, "images": 4})
    assert "PGD attack" in tracked.caption
    assert [trace["y"][0] for trace in tracked.figure["data"]] == [0.0, 25.0, 75.0]
    for other in ({"kept": "a word"}, 3, None):
        assert "Bullet-Train sorted" in shown(counts=counts, dynamics=other, validation=other).caption


def test_command_writes_three_files_and_prints_the_table(capsys, study: Path, tmp_path: Path):
    output = tmp_path / "out.html"
    arguments = ("report", study / "full", study / "glister", "--output", output, "--images", "0")
    answer = call(capsys, *arguments)
    assert answer.status == 0
    assert "mart, adv-glister 30 %, Bullet" in answer.out
    assert str(output) in answer.out
    assert {path.name for path in tmp_path.iterdir()} == {"out.html", "out.md", "out.csv"}
    assert call(capsys, *arguments).status == 0  # an earlier report is overwritten
    (tmp_path / "out.csv").write_text("mine")
    before = contents(tmp_path)
    answer = call(capsys, *arguments)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "out.csv exists and is not an earlier report" in answer.err
    assert contents(tmp_path) == before
    (tmp_path / "out.csv").unlink()
    (tmp_path / "out.csv").symlink_to(tmp_path / "nowhere" / "mine.csv")
    answer = call(capsys, *arguments)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert (tmp_path / "out.csv").is_symlink()


def test_command_says_what_is_wrong_in_a_line(capsys, study: Path, tmp_path: Path):
    cases = [
        ((study, "--output", tmp_path / "page.txt"), "must end in .html"),
        ((study, "--output", tmp_path / "no/page.html"), "there is no folder"),
        ((tmp_path / "nothing", "--output", tmp_path / "page.html"), "there is no such folder"),
        ((tmp_path, "--output", tmp_path / "page.html"), "neither a run directory"),
        ((study, "--baseline", tmp_path, "--output", tmp_path / "page.html"), "not a finished run"),
        ((study,), "Missing option '--output'"),
    ]
    for arguments, message in cases:
        answer = call(capsys, "report", *arguments)
        assert (answer.status, answer.err.count("\n")) == (2, 1)
        assert message in answer.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finished_is_named_on_the_page(study: Path, tmp_path: Path):
    from robustcords.experiments.compare import report

    shutil.copytree(study / "full", tmp_path / "runs/full")
    shutil.copytree(study / "glister", tmp_path / "runs/half")
    (tmp_path / "runs/half/report.json").unlink()
    report([tmp_path / "runs"], tmp_path / "page.html", images=0)
    note = f"{tmp_path / 'runs/half'}: left out: not finished (no report.json)"
    assert note in Page(tmp_path / "page.html").text


def test_checks_for_masked_gradients_are_a_table(tmp_path: Path):
    checks = [
        {"name": "more steps", "status": "pass", "finding": "PGD-100 breaks <no> less"},
        {"name": "black-box", "status": "fail", "finding": "Square breaks 12 more"},
    ]
    path = make_run(tmp_path / "run")
    report = json.loads((path / "report.json").read_text())
    report["evaluation"]["last"]["sanity"] = {"checks": checks, "level": 0.01}
    (path / "report.json").write_text(json.dumps(report))
    page.write(compare(find_runs([path])), tmp_path / "page.html")
    shown = Page(tmp_path / "page.html")
    assert "Masked gradients: trades, full data, seed 0, last weights" in shown.text
    assert all(text in shown.text for check in checks for text in check.values())
    warning = "masked gradients (last): the check of black-box fails: Square breaks 12 more"
    assert all(warning in (tmp_path / name).read_text() for name in ("page.html", "page.md"))
    assert "check of more steps" not in (tmp_path / "page.md").read_text()
    report["evaluation"]["last"]["sanity"]["checks"] = [{"name": "more steps"}]
    (path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"report\.json: damaged: evaluation\.last\.sanity\.checks\.0\.status: "):
        load_run(path)
