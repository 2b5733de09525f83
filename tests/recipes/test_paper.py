from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from support.cases import cases

from robustcords.errors import UserError
from robustcords.paper.presets import PRESETS, recipe_for
from robustcords.paper.tables import COLUMNS, TABLES, PaperTable, Row
from robustcords.recipe import recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "paper"
ROWS = [row for table in TABLES.values() for row in table.rows]
PRINTED = [row for row in ROWS if not row.baseline]
BASELINES = [row for row in ROWS if row.baseline]
BASES = {"paper/figure1/base"}

# Li et al. 2023, "Less is More: Data Pruning for Faster Adversarial Training", arXiv:2302.12366, CC BY 4.0: its tables,
# copied row by row, without the numbers of citations and with "x" for the multiplication sign.
COPIED = {
    "table1": """
CIFAR-10	TRADES	82.73	69.17	51.83	19.43	49.06	416.20 (-)
CIFAR-10	Bullet	84.60	70.24	50.82	16.05	47.93	193.06 (2.16x)
CIFAR-10	Adv-GLISTER (Ours)	77.62	63.06	46.06	16.52	41.61	120.70 (3.45x)
CIFAR-10	Adv-GRAD-MATCH (Ours)	75.67	61.85	45.96	17.49	42.19	138.19 (3.01x)
CIFAR-10	Adv-GLISTER&Bullet (Ours)	79.21	63.02	44.52	13.33	40.77	72.91 (5.66x)
CIFAR-10	Adv-GRAD-MATCH&Bullet (Ours)	77.57	62.00	45.13	14.65	41.94	87.38 (4.76x)
CIFAR-100	TRADES	55.85	40.31	27.35	10.71	23.39	387.72 (-)
CIFAR-100	Bullet	59.43	42.23	28.08	9.40	23.85	173.59 (2.23x)
CIFAR-100	Adv-GLISTER (Ours)	51.26	37.16	24.78	9.49	20.57	202.7 (1.91x)
CIFAR-100	Adv-GRAD-MATCH (Ours)	51.03	37.17	24.60	9.70	20.42	206.05 (1.88x)
CIFAR-100	Adv-GLISTER&Bullet (Ours)	53.54	37.24	23.91	7.69	20.02	105.66 (3.67x)
CIFAR-100	Adv-GRAD-MATCH&Bullet (Ours)	52.98	36.92	24.24	8.01	20.17	105.61 (3.67x)
""",
    "table2": """
CIFAR-10	MART	80.96	68.21	52.59	19.52	46.94	329.54 (-)
CIFAR-10	Bullet	85.29	70.92	50.64	13.33	43.77	199.42 (1.65x)
CIFAR-10	Adv-GLISTER (Ours)	71.97	60.13	46.25	16.59	39.86	95.68 (3.44x)
CIFAR-10	Adv-GRAD-MATCH (Ours)	73.67	61.35	47.07	18.16	40.98	106.51 (3.09x)
CIFAR-10	Adv-GLISTER&Bullet (Ours)	73.87	59.89	44.01	14.20	38.99	64.31 (5.12x)
CIFAR-10	Adv-GRAD-MATCH&Bullet (Ours)	78.78	64.42	46.72	13.50	39.53	77.11 (4.27x)
CIFAR-100	MART	54.85	39.24	25.08	8.59	22.66	307.43 (-)
CIFAR-100	Bullet	57.44	39.22	24.14	6.66	21.55	187.73 (1.64x)
CIFAR-100	Adv-GLISTER (Ours)	46.36	34.37	24.01	9.20	19.79	152.11 (2.02x)
CIFAR-100	Adv-GRAD-MATCH (Ours)	48.07	36.19	26.11	10.79	21.24	153.86 (2.00x)
CIFAR-100	Adv-GLISTER&Bullet (Ours)	52.13	35.07	20.67	5.64	18.21	100.22 (3.07x)
CIFAR-100	Adv-GRAD-MATCH&Bullet (Ours)	52.46	35.81	22.20	6.48	18.68	113.03 (2.72x)
""",
    "table3": """
Adv-GLISTER	100	77.62	63.06	46.06	16.52	41.61
Adv-GRAD-MATCH	100	75.61	60.81	45.76	17.49	42.19
Adv-GLISTER	200	78.76	64.15	46.11	16.92	42.43
Adv-GRAD-MATCH	200	75.75	61.24	46.49	18.55	43.63
""",
    "table4": """
TRADES	-	83.32	68.91	49.64	17.31	47.53	-
Adv-GLISTER	4	75.80	60.48	44.62	16.07	40.44	3.15x
Adv-GRAD-MATCH	4	73.80	60.43	46.06	18.33	43.03	2.83x
Adv-GLISTER	9	78.76	64.15	46.11	16.92	42.43	2.93x
Adv-GRAD-MATCH	9	75.75	61.24	46.49	18.55	43.63	2.75x
""",
}
ACCURACIES = COLUMNS[:5]


def copied(name: str) -> list[tuple[str, str, str, dict[str, float | None]]]:
    """Returns what a copied table says in each row: data set, method, setting, and every column of `COLUMNS`."""
    found = []
    for line in COPIED[name].strip().splitlines():
        first, second, *rest = line.replace(" (Ours)", "").split("\t")
        numbers: dict[str, float | None] = dict.fromkeys(COLUMNS)
        numbers |= {column: float(cell) for column, cell in zip(ACCURACIES, rest, strict=False)}
        ending = rest[-1] if len(rest) > len(ACCURACIES) else ""
        if time := re.match(r"([\d.]+) \(", ending):
            numbers["seconds_per_epoch"] = float(time[1])
        if speed_up := re.search(r"([\d.]+)x", ending):
            numbers["speed_up"] = float(speed_up[1])
        if name in {"table1", "table2"}:
            found.append((first.lower().replace("-", ""), second, "", numbers))
        else:
            unit = "epochs" if name == "table3" else "selections"
            found.append(("cifar10", first, "" if second == "-" else f"{second} {unit}", numbers))
    return found


@cache
def written(name: str) -> recipe.Recipe:
    """Returns a shipped recipe."""
    return recipe.load(name)


def full(row: Row) -> Row:
    """Returns the row that a row's speed-up is over."""
    return TABLES[row.recipe.split("/")[1]].row(row.speed_up_over)


@cases("name", COPIED)
def test_the_numbers_are_the_papers(name: str) -> None:
    table = TABLES[name]
    assert [
        (row.dataset, row.method, row.setting, dict(row.paper)) for row in table.rows if not row.baseline
    ] == copied(name)
    given = {column for row in table.rows for column in COLUMNS if row.paper[column] is not None}
    assert given == set(table.columns)


def test_speed_ups_are_ratios_of_times_but_for_the_one_that_is_noted() -> None:
    off = []
    for row in PRINTED:
        time, before, speed_up = (
            row.paper["seconds_per_epoch"],
            full(row).paper["seconds_per_epoch"],
            row.paper["speed_up"],
        )
        if time and before and speed_up and abs(before / time - speed_up) > 0.0051:
            off.append(row)
    assert [row.recipe for row in off] == ["paper/table1/cifar10_glister_bullet"]
    assert "5.71" in off[0].notes[0]


def test_figure_2_has_the_numbers_of_tables_1_and_2_where_they_are_the_same_setting() -> None:
    for row in TABLES["figure2"].rows:
        given = {column: number for column, number in row.paper.items() if number is not None}
        assert bool(given) == (row.setting in {"30 %", "100 %"} and not row.baseline)
        same = [
            other
            for name in ("table1", "table2")
            for other in TABLES[name].rows
            if given and written(other.recipe) == written(row.recipe)
        ]
        assert [{column: other.paper[column] for column in given} for other in same] == [given] * bool(given)
        assert all(other.paper["speed_up"] == row.paper["speed_up"] for other in same)


def test_our_baselines_have_no_numbers_of_the_papers() -> None:
    assert BASELINES
    assert not any(number is not None for row in BASELINES for number in row.paper.values())


@cases("table", TABLES.values())
def test_rows_name_rows(table: PaperTable) -> None:
    names = [row.id for row in table.rows]
    assert len(set(names)) == len(names)
    for row in table.rows:
        assert table.row(row.id) is row
        assert full(row).speed_up_over == full(row).id
        assert full(row).dataset == row.dataset
        assert all(not table.row(name).baseline and table.row(name).dataset == row.dataset for name in row.equal_time)
    with pytest.raises(KeyError):
        table.row("cifar11_trades")


@cases("name", ["table1", "table2", "table3", "table4"])
def test_every_table_has_every_baseline(name: str) -> None:
    for dataset in {row.dataset for row in TABLES[name].rows}:
        loaded = [written(row.recipe) for row in TABLES[name].rows if row.baseline and row.dataset == dataset]
        random = [
            each
            for each in loaded
            if each.selector and each.selector.name == "random" and each.effort.name == "uniform"
        ]
        assert {each.selector.fresh for each in random} == {False, True}
        assert any(each.selector is None and each.train.epochs in {32, 33, 50, 53, 73} for each in loaded)
        fast = [each for each in loaded if each.attack.name == "fgsm"]
        assert [(each.loss.name, each.attack.random_start) for each in fast] == [("sat", "uniform")] * len(fast)
        assert fast
        assert all(each.attack.step_size == 10 / 255 for each in fast), "1.25 epsilon, and not PGD's step"
        assert any("best" in each.evaluation.checkpoints and each.train.validate_every == 1 for each in loaded)


def test_every_recipe_is_a_rows_and_every_row_has_one() -> None:
    shipped = {name for name in recipe.shipped() if name.startswith("paper/")}
    assert shipped == {row.recipe for row in ROWS} | BASES
    assert len(ROWS) == len(shipped - BASES)


@cases("row", ROWS)
def test_the_first_line_names_the_row(row: Row) -> None:
    first = recipe.shipped()[row.recipe].read_text(encoding="utf-8").partition("\n")[0]
    table, file = row.recipe.split("/")[1:]
    place = f"{table[:-1].capitalize()} {table[-1]}"
    if file.startswith("cifar"):
        place += f", {row.dataset.replace('cifar', 'CIFAR-')}"
    assert first.startswith(f"# Not in the paper, for {place}" if row.baseline else f"# {place}, ")
    assert row.setting in first
    if not row.baseline:
        assert row.method.partition(" (")[0] in first


@cases("row", PRINTED)
def test_the_paper_preset_is_what_the_paper_says(row: Row) -> None:
    loaded = recipe_for(row)
    assert loaded == written(row.recipe)
    hundred, table = row.dataset == "cifar100", row.recipe.split("/")[1]
    mart, glister, gradmatch = (loaded.loss.name == "mart"), "GLISTER" in row.method, "GRAD-MATCH" in row.method
    assert mart == (table == "table2" or "mart" in row.id)
    assert (loaded.data.name, loaded.model.name, loaded.attack.name) == (row.dataset, "resnet18", "pgd")
    assert loaded.train.epochs == (200 if table in {"table4", "figure1"} or row.setting == "200 epochs" else 100)
    assert ("dynamics" in loaded.callbacks) == (table == "figure1")
    options = loaded.optimizer.options()
    assert (loaded.optimizer.name, options["momentum"], options["weight_decay"]) == (
        "sgd",
        0.9,
        3.5e-3 if mart else 2e-4,
    )
    if glister or gradmatch:
        assert loaded.selector is not None
        assert loaded.selector.name == ("adv-glister" if glister else "adv-gradmatch")
        share = row.setting if table == "figure2" else "50 %" if hundred else "30 %"
        assert loaded.selector.fraction == float(share.removesuffix(" %")) / 100
        assert loaded.selector.select_every == (40 if row.setting == "4 selections" else 20)
        assert options["lr"] == ((0.05 if hundred else 0.02) if glister else (0.08 if hundred else 0.01))
    else:
        assert loaded.selector is None
    assert loaded.data.validation_fraction == (0.1 if glister else 0)
    assert (loaded.effort.name == "bullet") == ("Bullet" in row.method)
    assert mart or loaded.loss.options()["beta"] == (1 if pruned_for_200_epochs(row) or table == "table3" else 6)
    pgd, autoattack = loaded.evaluation.pgd, loaded.evaluation.autoattack
    assert pgd is not None
    assert (pgd.steps, pgd.restarts, pgd.step_size) == (50, 10, 2 / 255)
    assert pgd.epsilons == [4 / 255, 8 / 255, 16 / 255]
    assert autoattack is not None
    assert (autoattack.version, autoattack.epsilons, autoattack.limit) == ("standard", [8 / 255], 0)


def pruned_for_200_epochs(row: Row) -> bool:
    return row.recipe.startswith(("paper/table4/", "paper/figure1/")) and "Adv-" in row.method


def test_selections_of_table_4_are_as_many_as_it_says() -> None:
    for row in TABLES["table4"].rows:
        if row.setting:
            loaded = recipe_for(row)
            assert loaded.selector is not None
            times = (loaded.train.epochs - 1) // loaded.selector.select_every
            assert f"{times} selections" == row.setting


@cases("preset", PRESETS)
def test_a_preset_fits_every_row(preset: str) -> None:
    for row in ROWS:
        own, fitted = written(row.recipe), recipe_for(row, preset, ["seed=7"])
        assert fitted.seed == 7
        assert fitted.data.name == ("digits" if preset == "smoke" else row.dataset)
        assert (fitted.loss, fitted.attack, fitted.threat, fitted.effort) == (
            own.loss,
            own.attack,
            own.threat,
            own.effort,
        )
        share = 0.1 if preset == "small" else own.data.validation_fraction
        assert fitted.data.validation_fraction == share
        assert (fitted.selector is None) == (own.selector is None)
        if fitted.selector and own.selector:
            assert (fitted.selector.name, fitted.selector.fraction) == (
                own.selector.name,
                own.selector.fraction,
            )


@cases(
    ("table", "row", "epochs", "select_every"),
    [
        ("table1", "cifar10_trades", 12, None),
        ("table1", "cifar10_equal_time", 4, None),
        ("table1", "cifar100_fgsm_rs_equal_time", 34, None),
        ("table3", "glister_200", 24, 3),
        ("table4", "gradmatch_4", 24, 6),
    ],
)
def test_a_presets_epochs_stand_for_the_papers(table: str, row: str, epochs: int, select_every: int | None) -> None:
    small = recipe_for(TABLES[table].row(row), "small")
    assert small.train.epochs == epochs
    assert (small.selector.select_every if small.selector else None) == select_every


def test_a_row_keeps_what_makes_it_what_it_is() -> None:
    for preset in ("small", "smoke"):
        early = recipe_for(TABLES["table1"].row("cifar10_early_stopped"), preset)
        assert (early.train.validate_every, early.evaluation.checkpoints) == (1, ["best", "last"])
        fast = TABLES["table1"].row("cifar10_fgsm_rs_equal_time")
        assert recipe_for(fast, preset).optimizer == written(fast.recipe).optimizer
        assert recipe_for(fast, preset).schedule == written(fast.recipe).schedule


@cases("loss", ["trades", "mart"])
@cases("bullet", ["", "_bullet"])
@cases("way", ["", "_glister", "_gradmatch", "_random", "_fresh", "_glister_cords"])
def test_small_is_what_the_small_recipes_are(loss: str, way: str, bullet: str) -> None:
    table = TABLES["table1" if loss == "trades" else "table2"]
    row = table.row(f"cifar10{way}{bullet}" if way or bullet else f"cifar10_{loss}")
    small = recipe.load(f"cifar10_small_{loss}{way}{bullet}")
    assert recipe_for(row, "small") == small


def test_overrides_come_last_and_are_checked() -> None:
    row = TABLES["table1"].row("cifar10_equal_time")
    assert recipe_for(row, "small", ["train.epochs=5"]).train.epochs == 5
    with pytest.raises(UserError, match=r"^--set train.epoch=5: \[train\] .*epochs"):
        recipe_for(row, "small", ["train.epoch=5"])
    with pytest.raises(UserError, match=r"^unknown preset 'smal'.*small"):
        recipe_for(row, "smal")


def test_the_fresh_rows_differ_from_the_random_ones_in_that_alone() -> None:
    fresh = [row for row in BASELINES if "fresh" in row.id]
    assert fresh
    for row in fresh:
        other = written("paper/table4/random_9" if row.id == "fresh" else row.recipe.replace("fresh", "random"))
        expected = other.selector.model_copy(update={"fresh": True, "select_every": 1, "select_first": True})
        assert written(row.recipe) == other.model_copy(update={"selector": expected})


def test_the_random_rows_differ_in_the_selector_alone() -> None:
    for row in BASELINES:
        loaded = written(row.recipe)
        if loaded.selector and loaded.selector.name == "random" and not loaded.selector.fresh:
            other = written(row.recipe.replace("random", "gradmatch"))
            changed = {key for key in type(loaded).model_fields if getattr(loaded, key) != getattr(other, key)}
            assert changed == {"selector"}
            assert other.selector
            assert loaded.selector.fraction == other.selector.fraction
            assert loaded.selector.select_every == other.selector.select_every


def test_files_say_only_what_differs() -> None:
    for file in FOLDER.rglob("*.toml"):
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        assert "extends" in values or file.stem == "base"
