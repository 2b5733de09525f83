"""The paper's tables, run again: every row, and the baselines that the paper lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcords.errors import RunError, UserError, nearest
from robustcords.experiment import differences
from robustcords.fleet import WORKSHOP, Fleet, Job, Task, slots
from robustcords.interruption import Interruption
from robustcords.paper.presets import recipe_for
from robustcords.paper.tables import TABLES, PaperTable, Row
from robustcords.progress import Board
from robustcords.recipe import Recipe, load
from robustcords.report.comparison import training_seconds
from robustcords.report.runs import Run, load_run
from robustcords.run_directory import has_run


@dataclass(frozen=True)
class Plan:
    """What to reproduce.

    Attributes:
        table: of the paper.
        preset: the size to run it in.
        rows: those of the table that are run, in its order.
        seeds: each row is run with each.
        overrides: ``"KEY=VALUE"``, the same for all of them.
        folder: where the runs are, each in a directory ``ROW,seed=N``.
    """

    table: PaperTable
    preset: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    overrides: Sequence[str]
    folder: Path

    def name(self, row: Row, seed: int) -> str:
        """Returns the name of a run's directory."""
        return f"{row.id},seed={seed}"

    def recipe(self, row: Row, seed: int, *more: str) -> Recipe:
        """Returns a run's recipe, with some more overrides."""
        return recipe_for(row, self.preset, [*self.overrides, f"seed={seed}", *more])

    def runs(self, row: Row) -> tuple[list[Run], list[str]]:
        """Returns the finished runs of a row, whatever their seeds, and a line for each that is not of this plan.

        Raises:
            UserError: a run is damaged.
        """
        found, others = [], []
        for report in sorted(self.folder.glob(f"{row.id},seed=*/report.json")):
            own = load(report.with_name("recipe.toml"))
            length = [f"train.epochs={own.train.epochs}"] if row.equal_time else []
            planned = self.recipe(row, own.seed, *length)
            different = differences(own, planned)
            if own.train.epochs < planned.train.epochs:
                different.append("train.epochs")
            if different:
                others.append(f"{report.parent}: left out: another recipe; what differs: {', '.join(different)}")
            else:
                found.append(load_run(report.parent))
        return found, others


def plan(
    table: str,
    preset: str = "paper",
    *,
    datasets: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> Plan:
    """Returns what a request comes to.

    Args:
        table: ``"table1"`` ... ``"figure2"``.
        preset: see `robustcords.paper.presets.PRESETS`.
        datasets: only their rows; none for the table's first one.
        rows: only these; none for all.
        seeds: each row is run with each of them.
        overrides: ``"KEY=VALUE"``, the same for all rows.
        folder: of the runs; None for ``runs/TABLE-PRESET``.

    Raises:
        UserError: there is no such table, preset, data set or row.
    """
    if table not in TABLES:
        raise UserError(f"unknown table {table!r}{nearest(table, TABLES)}")
    found = TABLES[table]
    known = list(dict.fromkeys(row.dataset for row in found.rows))
    wanted = datasets or known[:1]
    for name in wanted:
        if name not in known:
            raise UserError(f"--dataset {name}: not in {table}{nearest(name, known)}")
    chosen = [row for row in found.rows if row.dataset in wanted]
    ids = [row.id for row in chosen]
    for name in rows:
        if name not in ids:
            raise UserError(f"--row {name}: not among the rows of {table} for {', '.join(wanted)}{nearest(name, ids)}")
    chosen = [row for row in chosen if not rows or row.id in rows]
    for option in overrides:
        if option.partition("=")[0].strip() == "seed":
            raise UserError(f"--set {option}: the seeds are named with --seed")
    made = Plan(
        found, preset, chosen, list(dict.fromkeys(seeds)), overrides, folder or Path("runs") / f"{table}-{preset}"
    )
    for row in chosen:
        made.recipe(row, made.seeds[0])  # what is at fault is said before anything is run
    return made


def run(made: Plan, jobs: int | None = None) -> list[Job]:
    """Runs what of a plan is not done: the rows, and then those that are to take as long as others did.

    Args:
        made: see `plan`.
        jobs: how many runs at a time; None for one on each GPU, or one where there is none.

    Returns:
        How each run ended. One that trains for as long as rows that have failed is not begun.
    """
    timed = [row for row in made.rows if row.equal_time]
    plain = [row for row in made.rows if not row.equal_time]
    with Interruption() as interruption, Board() as board:
        fleet = Fleet(made.folder, slots(jobs), board, interruption)
        # Seed by seed, so that a whole table is there as early as can be.
        fleet.run([Task(made.name(row, seed), made.recipe(row, seed)) for seed in made.seeds for row in plain])
        workshop = Fleet(made.folder / WORKSHOP, fleet.places[:1], board, interruption)
        tasks = []
        for seed in made.seeds:
            for row in timed:
                recipe = _equal_time(made, row, seed, workshop)
                if recipe is None:
                    why = f"it is to train for as long as {', '.join(row.equal_time)}, which are not all done"
                    board.say(f"{made.name(row, seed)}: left out: {why}")
                else:
                    tasks.append(Task(made.name(row, seed), recipe))
        fleet.run(tasks)
    return fleet.jobs


def _equal_time(made: Plan, row: Row, seed: int, workshop: Fleet) -> Recipe | None:
    """Returns the recipe of a row that trains for as long as others did; None where these are not there.

    The number of epochs stays what it was when the run began: later runs of the others do not change it.
    """
    path = made.folder / made.name(row, seed)
    if has_run(path):
        return made.recipe(row, seed, f"train.epochs={load(path / 'recipe.toml').train.epochs}")
    others = [made.folder / made.name(made.table.row(other), seed) for other in row.equal_time]
    if not all((other / "report.json").exists() for other in others):
        return None
    longest = max(_seconds(load_run(other)) for other in others)
    epochs = max(1, round(longest / _seconds_per_epoch(made, row, seed, workshop)))
    return made.recipe(row, seed, f"train.epochs={epochs}")


def _seconds_per_epoch(made: Plan, row: Row, seed: int, workshop: Fleet) -> float:
    """Returns what an epoch of a row takes: measured by a run that differs in its length alone, or else by one epoch.

    Raises:
        RunError: that epoch cannot be run.
    """
    over = made.table.row(row.speed_up_over)
    path = made.folder / made.name(over, seed)
    if (path / "report.json").exists() and _but_epochs(made.recipe(over, seed)) == _but_epochs(made.recipe(row, seed)):
        measured = load_run(path)
    else:
        options = ("train.epochs=1", "train.dynamics=false", "evaluation.pgd=false", "evaluation.autoattack=false")
        recipe = made.recipe(row, seed, *options, 'evaluation.checkpoints=["last"]', "evaluation.limit=1")
        (job,) = workshop.run([Task(f"one-epoch,{made.name(row, seed)}", recipe)])
        if job.state == "failed":
            raise RunError(f"{job.path}: one epoch of {row.id}, for its time, failed: {job.note}")
        measured = load_run(job.path)
    return _seconds(measured) / int(measured.report["training"]["epochs"])


def _but_epochs(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 1})})


def _seconds(run: Run) -> float:
    """Returns a run's training time, selection included.

    Raises:
        UserError: its report does not say.
    """
    seconds = training_seconds(run)
    if seconds is None:
        raise UserError(f"{run.path}: the report has no training time, which other rows are to take as long as")
    return seconds
