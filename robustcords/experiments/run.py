"""``robustcords run``: trains, evaluates and reports a recipe in a run directory."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from robustcords.engine.convolution import sound_convolutions
from robustcords.engine.inference import Inference
from robustcords.engine.memory_format import lay_out
from robustcords.errors import Interrupted, RunError, UserError
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.evaluation.results import Evaluation
from robustcords.evaluation.sanity.checks import Sanity
from robustcords.experiments import build
from robustcords.experiments.environment import environment
from robustcords.experiments.proxy import ProxyTraining
from robustcords.experiments.tracker_images import log_images
from robustcords.recipe.recipe import Recipe, dump, load
from robustcords.recipe.roles import CHANGEABLE, role_of
from robustcords.report.grouping import flat
from robustcords.report.run_report import Report, summarise
from robustcords.report.run_tables import markdown
from robustcords.report.runs import environment_of, rows_of
from robustcords.runtime import collectives
from robustcords.runtime.interruption import Interruption
from robustcords.runtime.profiler import Profiler
from robustcords.runtime.progress import Display
from robustcords.runtime.session import Session
from robustcords.runtime.trackers import figures
from robustcords.runtime.watchdog import Watch
from robustcords.storage import run_directory
from robustcords.storage.files import write_atomic
from robustcords.storage.run_directory import RunDirectory
from robustcords.training.callbacks.validation import Validation
from robustcords.training.trainer import Trainer


@contextmanager
def session(recipe: Recipe) -> Iterator[Session]:
    """Starts the processes and the display, and ends them again.

    Signals end the command at once, as ever, but where the session's `Interruption` is entered.

    Raises:
        LostProcess: what was done in the context failed because another process is gone.
    """
    accelerator = build.accelerator(recipe)
    interruption = Interruption(recipe.train.time_limit)
    shown = Display(visible=accelerator.is_main_process)
    with sound_convolutions(), shown as display, Watch(interruption.follow) as watch:
        try:
            yield Session(accelerator, display, interruption)
        except Exception as error:
            if reason := _reason(error, watch, interruption):
                raise reason from error
            raise
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
    accelerator.state.destroy_process_group()


def _reason(error: BaseException, watch: Watch, interruption: Interruption) -> Exception | None:
    """Returns what stopped this process where the error at hand is only what came of it, or None."""
    while error.__cause__:
        error = error.__cause__
    if isinstance(error, UserError | RunError):
        return None
    explained = isinstance(error, Interrupted)
    lost = watch.lost_within(0.5 if explained else 1.0)
    if lost is None:
        return None
    # A launcher that sees a process die sends the others SIGTERM, which says nothing of why.
    return lost if lost.died else (None if explained else interruption.verdict(interruption.reasons()) or lost)


def run(
    recipe: Recipe, name: str, output: Path | None = None, resume: bool = False, profile: bool = False
) -> tuple[Path, Report]:
    """Trains, evaluates and reports; returns the run directory and the report.

    Args:
        recipe: what to do.
        name: what a run directory is called where ``output`` names none.
        output: the run directory; None for ``runs/NAME``, or the next free of ``runs/NAME-2``, ``-3``, ...
        resume: continue the run that is there, if one is; a finished one is left as it is.
        profile: record some training steps of the main process, into ``profile/`` in the run directory.

    Raises:
        UserError: the directory holds another run, or the recipe's data cannot be used.
        Interrupted: a signal asked to stop; ``resume`` continues from there.
        RunError: the loss is not finite.
    """
    recipe = _with_own_choices(recipe, name, output) if resume else recipe
    with session(recipe) as work, ExitStack() as claims:

        def claim(path: Path) -> None:
            collectives.decide_together(lambda: claims.enter_context(run_directory.claim(path)) and None)

        recipe = build.resolved(recipe, work.accelerator)
        path = collectives.decide_together(lambda: _existing(recipe, name, output, resume))
        if path and finished(path, recipe):
            work.display.say(f"{path} is finished; nothing to do")
            return path, Report.read(RunDirectory(path).report)
        if path:
            claim(path)
        with work.accelerator.main_process_first():
            images = load_images(recipe, work)
        # What cannot be built is said before there is a directory.
        trainer, proxy = build.trainer(recipe, images, work), ProxyTraining(recipe, images, work)
        recipe.evaluation.build(recipe.threat)
        recipe = recipe.with_train(memory_format=trainer.settings.memory_format)
        if path is None:
            path = collectives.decide_together(lambda: run_directory.create(output, name))
            claim(path)
        directory = RunDirectory(
            path, writes=work.accelerator.is_main_process, keep_checkpoints=recipe.train.keep_checkpoints
        )
        if directory.recipe.exists() and load(directory.recipe, of_run=True) != recipe:
            directory.change_recipe(dump(recipe))
        collectives.barrier()
        directory.start(dump(recipe), environment(recipe, work.accelerator))
        with work.interruption:
            collectives.barrier()  # nobody begins before a signal to any other one is a request to stop together
            environment_of(directory)  # better now than when the report is made, after training
            trainer.run = directory
            trainer.length.on_plan = lambda steps: directory.change_recipe(dump(recipe.with_train(steps=steps)))
            if trainer.selector and trainer.selector.proxy:
                trainer.selector.proxy_seconds = proxy.run(directory, trainer.selector.proxy.model)
            if profile and directory.writes:
                work.profiler = Profiler(path / "profile", work.device, work.display)
            return path, _run_in(directory, recipe, images, trainer, work)


def _run_in(directory: RunDirectory, recipe: Recipe, images: build.Data, trainer: Trainer, work: Session) -> Report:
    """Trains, evaluates and reports in a directory that is ready for it; returns the report."""
    number = collectives.world_size()
    shared = f", {number} processes" if number > 1 else ""
    work.display.say(f"{directory.path}: {len(images.train)} training images, {len(images.test)} test images{shared}")
    for text in (warnings := [*build.cautions(recipe), *trainer.loader.cautions()]):
        work.display.say(f"warning: {text}")
    warnings = [*images.warnings, *warnings]
    if recipe.logging.trackers:
        work.accelerator.project_configuration.logging_dir = str(directory.path / "trackers")
        work.accelerator.init_trackers(
            directory.path.name,
            # Lists as text, which is all that trackers can keep.
            config={key: str(value) if isinstance(value, list) else value for key, value in flat(plain(recipe))},
        )
    trainer.fit()
    if trainer.length.budget and trainer.length.steps:
        recipe = recipe.with_train(steps=trainer.length.steps)
    collectives.barrier()
    results: dict[str, Evaluation] = {}

    def report(*, complete: bool) -> Report:
        """Writes the report of what has been measured so far."""
        around, rows = environment_of(directory), rows_of(directory)
        made = summarise(plain(recipe), around, rows, directory.selections(), results, warnings, complete=complete)
        if work.accelerator.is_main_process:
            write_report(directory, made)
        return made

    if not directory.report.exists():
        report(complete=False)  # whatever becomes of the evaluation
    validated = any(isinstance(callback, Validation) and callback.best is not None for callback in trainer.callbacks)
    for which in recipe.evaluation.checkpoints:
        if which == "best" and not validated:
            continue
        build.load_weights(trainer.model, directory.weights(which))
        store = directory.path / "evaluation" / which

        def so_far(found: Evaluation, which: str = which) -> None:
            results[which] = found
            report(complete=False)

        results[which] = test(
            trainer.inference, images, recipe, recipe.evaluation, work, store, f"{which} weights", on_measured=so_far
        )
    made = report(complete=True)
    reported = {key: value for key, value in made.to_json().items() if key in {"training", "evaluation"}}
    work.accelerator.log(figures(reported), step=trainer.progress.epoch)
    if recipe.logging.trackers and work.accelerator.is_main_process:
        log_images(directory, recipe, images, trainer, work)
    collectives.barrier()
    return made


def load_images(recipe: Recipe, work: Session) -> build.Data:
    """Returns a recipe's images, having said what a person should know of how they were read."""
    images = build.data(recipe, work.display)
    for note in images.notes:
        work.display.say(f"note: {note}")
    for text in images.warnings:
        work.display.say(f"warning: {text}")
    return images


def write_report(directory: RunDirectory, report: Report) -> None:
    """Writes the report for people, then the one for programs, which if it is complete makes the run a finished one."""
    write_atomic(directory.path / "report.md", markdown(report))
    report.write(directory.report)


def test(
    model: nn.Module,
    images: build.Data,
    recipe: Recipe,
    config: EvaluationConfig,
    work: Session,
    store: Path | None = None,
    label: str = "evaluation",
    sanity: Sanity | None = None,
    on_measured: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Returns what a model reaches on the test set, showing progress; with ``sanity``, its checks too."""
    network = model if isinstance(model, Inference) else Inference(model, replay=bool(recipe.train.cuda_graphs))
    lay_out(network.model, work.device, recipe.train.memory_format)
    # Asks before every forward pass whether to stop: a chunk of AutoAttack can take minutes.
    with work.display.task(label) as update, network.under(work.interruption.watched(nullcontext)):

        def on_progress(what: str, done: int, total: int) -> None:
            update(done, total, what)
            work.interruption.check_together(work.device)

        around: dict[str, Any] = {
            "seed": recipe.seed,
            "device": work.device,
            "store": store,
            "on_progress": on_progress,
        }
        result = evaluate(network, images.test, config, recipe.threat, **around, on_measured=on_measured)
        if sanity is not None:
            result = result.model_copy(update={"sanity": sanity.check(network, images.test, **around)})
        return result


def plain(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as the tables that its TOML has."""
    return tomllib.loads(dump(recipe))


def _with_own_choices(recipe: Recipe, name: str, output: Path | None) -> Recipe:
    """Returns the recipe with what ``"auto"`` stood for where the run began, and its budget's steps so far."""
    path = output or run_directory.newest(name)
    if path is None or not run_directory.has_run(path):
        return recipe
    own = load(path / "recipe.toml", of_run=True).train
    kept = {key: getattr(own, key) for key in ("memory_format", "precision") if getattr(recipe.train, key) == "auto"}
    if recipe.train.budget == own.budget and not recipe.train.steps:
        kept["steps"] = own.steps
    return recipe.with_train(**kept)


def _existing(recipe: Recipe, name: str, output: Path | None, resume: bool) -> Path | None:
    """Returns the directory of the run to resume, or None for a new run.

    Raises:
        UserError: there is a run that may not be touched, or it has another recipe.
    """
    if not resume:
        if output is not None:
            run_directory.refuse_taken(output)
        return None
    path = output or run_directory.newest(name)
    if path is None or not run_directory.has_run(path):
        return None
    if refused := differing_keys(load(path / "recipe.toml", of_run=True), recipe):
        raise UserError(
            f"--resume {path}: that run has another recipe; what differs: {', '.join(refused)}; "
            f"what may: more train.epochs or train.steps, {', '.join(sorted(CHANGEABLE))}"
        )
    return path


def changed_keys(own: Recipe, recipe: Recipe) -> set[str]:
    """Returns the dotted keys in which two recipes differ."""
    before, now = dict(flat(plain(own))), dict(flat(plain(recipe)))
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


def differing_keys(own: Recipe, recipe: Recipe) -> list[str]:
    """Returns the dotted keys in which a recipe differs from a run's own, and which keep it from being resumed."""
    changed = changed_keys(own, recipe)
    if longer(recipe, own):
        changed -= {"train.epochs", "train.steps"}
    if recipe.train.precision == "auto":  # what that stands for is found out on the machine
        changed.discard("train.precision")
    return sorted(key for key in changed if not role_of(key).changeable)


def finished(path: Path, recipe: Recipe) -> bool:
    """Returns whether a run has its report, and a recipe asks for no more training than that is of."""
    return RunDirectory(path).finished and not longer(recipe, load(path / "recipe.toml", of_run=True))


def longer(recipe: Recipe, own: Recipe) -> bool:
    """Returns whether a recipe asks for more epochs than another one, or for more steps."""
    lengths = ((recipe.train.epochs, own.train.epochs), (recipe.train.steps, own.train.steps))
    return any(isinstance(more, int) and isinstance(than, int) and more > than for more, than in lengths)
