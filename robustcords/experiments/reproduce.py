"""``robustcords reproduce``: every row of the paper's tables, and the baselines that the paper lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcords.errors import RunError, UserError, nearest
from robustcords.experiments.fleet import WORKSHOP, Fleet, Job, Task, slots
from robustcords.experiments.run import differing_keys, longer
from robustcords.paper.presets import recipe_for
from robustcords.paper.tables import TABLES, PaperTable, Row
from robustcords.recipe.recipe import Recipe, load
from robustcords.report.comparison import training_seconds
from robustcords.report.runs import Run, load_run
from robustcords.runtime.interruption import Interruption
from robustcords.runtime.progress import Board
from robustcords.storage.run_directory import RunDirectory, has_run


@dataclass(frozen=True)
class Reproduction:
    """What to reproduce.

    Attributes:
        table: of the paper.
        preset: the size to run it in.
        rows: those of the table that are run, in its order.
        datasets: whose rows they are among.
        seeds: each row is run with each.
        overrides: ``"KEY=VALUE"``, the same for all of them.
        folder: where the runs are, each in a directory ``ROW,seed=N``.
    """

    table: PaperTable
    preset: str
    rows: Sequence[Row]
    datasets: Sequence[str]
    seeds: Sequence[int]
    overrides: Sequence[str]
    folder: Path

    def name(self, row: Row, seed: int) -> str:
        """Returns the name of a run's directory."""
        return f"{row.id},seed={seed}"

    def recipe(self, row: Row, seed: int, *more: str) -> Recipe:
        """Returns a run's recipe, with some more overrides."""
        return recipe_for(row, self.preset, [*self.overrides, f"seed={seed}", *more])

    def runs(self) -> tuple[dict[str, list[Run]], list[str]]:
        """Returns what the folder has of the table's rows for the data sets, whichever rows and seeds this plan runs.

        Returns:
            Row id to finished runs, for each row that is run or has one; and a line for each run that is of another
            recipe than this plan would give it, or to which the overrides do not apply.

        Raises:
            UserError: a run is damaged.
        """
        found, others = {}, []
        for row in self.table.rows:
            if row.dataset not in self.datasets:
                continue
            own = []
            for path in self._directories(row, "report.json"):
                try:
                    different = self.differing(row, path)
                except UserError as error:
                    others.append(f"{path}: left out: {error}")
                    continue
                if different:
                    others.append(f"{path}: left out: another recipe; what differs: {', '.join(different)}")
                else:
                    own.append(load_run(path))
            if own or row in self.rows:
                found[row.id] = own
        return found, others

    def differing(self, row: Row, path: Path) -> list[str]:
        """Returns the keys in which a run of a row has another recipe than this plan's; any length is equal time's."""
        own = load(path / "recipe.toml", of_run=True)
        length = [f"train.epochs={own.train.epochs}"] if row.equal_time else []
        planned = self.recipe(row, own.seed, *length)
        shorter = ["train.epochs"] if longer(planned, own) else []
        return [*differing_keys(own, planned), *shorter]

    def length(self, row: Row) -> int | None:
        """Returns how many epochs a row of equal time has been given for its lowest seed, or None."""
        known = [path for path in self._directories(row, "recipe.toml") if not self.differing(row, path)]
        return load(known[0] / "recipe.toml", of_run=True).train.epochs if known else None

    def _directories(self, row: Row, file: str) -> list[Path]:
        found = [path.parent for path in self.folder.glob(f"{row.id},seed=*/{file}")]
        if file == "report.json":
            found = [path for path in found if RunDirectory(path).finished]
        return sorted(found, key=lambda path: (len(path.name), path.name))


def plan(
    table: str,
    preset: str = "paper",
    *,
    datasets: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> Reproduction:
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
        elsewhere = next((row.dataset for row in found.rows if row.id == name and row.id not in ids), None)
        if elsewhere:
            raise UserError(f"--row {name}: a row for {elsewhere}; add --dataset {elsewhere}")
        if name not in ids:
            raise UserError(f"--row {name}: not among the rows of {table} for {', '.join(wanted)}{nearest(name, ids)}")
    chosen = [row for row in chosen if not rows or row.id in rows]
    for option in overrides:
        if option.partition("=")[0].strip() == "seed":
            raise UserError(f"--set {option}: the seeds are named with --seed")
    folder = folder or Path("runs") / f"{table}-{preset}"
    made = Reproduction(found, preset, chosen, wanted, list(dict.fromkeys(seeds)), overrides, folder)
    for seed in made.seeds:
        if seed < 0:
            raise UserError(f"--seed {seed}: must be 0 or more")
    for row in chosen:
        made.recipe(row, made.seeds[0])  # what is at fault is said before anything is run
    return made


def run(made: Reproduction, jobs: int | None = None) -> list[Job]:
    """Runs what of a plan is not done: the rows, and then those that are to take as long as others did.

    Args:
        made: see `plan`.
        jobs: how many runs at a time; None for one on each GPU, or one where there is none.

    Returns:
        How each run ended or, after one whose input is at fault, that it waits. One that is to train for as long as
        rows that are not there is not begun, unless another seed of it has been given a length.
    """
    timed = [row for row in made.rows if row.equal_time]
    plain = [row for row in made.rows if not row.equal_time]
    with Interruption() as interruption, Board() as board:
        fleet = Fleet(made.folder, slots(jobs), board, interruption)
        # Seed by seed, so that a whole table is there as early as can be.
        fleet.run([Task(made.name(row, seed), made.recipe(row, seed)) for seed in made.seeds for row in plain])
        if fleet.at_fault:
            return fleet.jobs
        workshop = Fleet(made.folder / WORKSHOP, fleet.places[:1], board, interruption)
        tasks = []
        lengths = {row.id: made.length(row) for row in timed}
        for seed in made.seeds:
            for row in timed:
                path = made.folder / made.name(row, seed)
                if has_run(path):
                    epochs: int | None = load(path / "recipe.toml", of_run=True).train.epochs
                else:
                    epochs = lengths[row.id] or _equal_time(made, row, seed, workshop)
                if epochs is None:
                    why = f"it is to train for as long as {', '.join(row.equal_time)}, which are not all done"
                    board.say(f"{made.name(row, seed)}: left out: {why}")
                else:
                    lengths[row.id] = lengths[row.id] or epochs
                    tasks.append(Task(made.name(row, seed), made.recipe(row, seed, f"train.epochs={epochs}")))
        fleet.run(tasks)
    return fleet.jobs


def _equal_time(made: Reproduction, row: Row, seed: int, workshop: Fleet) -> int | None:
    """Returns for how many epochs a row trains as long as others did; None where these are not there.

    Raises:
        UserError: another one is of another recipe.
        RunError: an epoch that is to be timed cannot be run.
    """
    others = [_sibling(made, made.table.row(other), seed) for other in row.equal_time]
    if any(other is None for other in others):
        return None
    longest = max((other for other in others if other), key=_seconds)
    epoch = _timed(made, row, seed, workshop)
    if (there := _machine(longest)) != (here := _machine(epoch)):
        what = f"{longest.path.name} was timed on {there}, an epoch of {row.id} on {here}"
        workshop.board.say(f"{made.name(row, seed)}: {what}: not the same time")
    return max(1, round(_seconds(longest) / _seconds(epoch) * epoch.report.training.epochs))


def _sibling(made: Reproduction, row: Row, seed: int) -> Run | None:
    """Returns the finished run of another row, or None.

    Raises:
        UserError: it is of another recipe.
    """
    path = made.folder / made.name(row, seed)
    if not RunDirectory(path).finished:
        return None
    if different := made.differing(row, path):
        raise UserError(f"{path}: its time counts, but it has another recipe; what differs: {', '.join(different)}")
    return load_run(path)


def _machine(run: Run) -> str:
    place = run.report.environment
    return f"{place.device} ({place.world_size} x {place.threads} threads)"


def _timed(made: Reproduction, row: Row, seed: int, workshop: Fleet) -> Run:
    """Returns what tells how long an epoch of a row takes: a run that differs in its length alone, or else one epoch.

    Raises:
        RunError: that epoch cannot be run.
    """
    over = made.table.row(row.speed_up_over)
    same = made.recipe(over, seed).with_train(epochs=1) == made.recipe(row, seed).with_train(epochs=1)
    measured = _sibling(made, over, seed) if same else None
    if measured is None:
        options = ("train.epochs=1", "callbacks.dynamics=false", "evaluation.pgd=false", "evaluation.autoattack=false")
        recipe = made.recipe(row, seed, *options, 'evaluation.checkpoints=["last"]', "evaluation.limit=1")
        (job,) = workshop.run([Task(f"one-epoch,{made.name(row, seed)}", recipe)])
        if job.state == "failed":
            raise RunError(f"{job.path}: one epoch of {row.id}, for its time, failed: {job.note}")
        measured = load_run(job.path)
    return measured


def _seconds(run: Run) -> float:
    """Returns a run's training time, selection included.

    Raises:
        UserError: its report does not say.
    """
    seconds = training_seconds(run)
    if seconds is None:
        raise UserError(f"{run.path}: the report has no training time, which other rows are to take as long as")
    return seconds
