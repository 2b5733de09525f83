"""``robustcords report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robustcords.errors import UserError
from robustcords.experiments.adversarial_pictures import pictures
from robustcords.experiments.fleet import Job, failures
from robustcords.report import page
from robustcords.report.comparison import Comparison, Label, compare
from robustcords.report.comparison_tables import Section
from robustcords.report.runs import find_runs, unfinished
from robustcords.runtime.progress import Display
from robustcords.storage.run_directory import has_run


def page_in(folder: Path) -> Path:
    """Makes a folder for many runs, and returns the path of the page that is to compare them.

    Asked before there are any runs, so that none are made in vain.

    Raises:
        UserError: the folder cannot be made, or has a page that is no report.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be a folder ({error.strerror})") from error
    page.refuse_foreign(folder / "report.html")
    return folder / "report.html"


def report_on(folder: Path, output: Path, ended: Sequence[Job]) -> Comparison:
    """Compares what a sweep has made, and what others have before in the same folder; see `report`.

    Args:
        folder: of the runs.
        output: ``FILE.html``.
        ended: the sweep's runs, at least one of them done.
    """
    failed = {job.path for job in ended if job.state == "failed"}
    runs = [path for path in sorted(folder.iterdir()) if has_run(path) and path not in failed]
    return report(runs, output, left_out=failures(ended))


def report(
    paths: Sequence[Path],
    output: Path,
    baseline: Path | None = None,
    images: int = 6,
    sections: Sequence[Section] = (),
    left_out: Sequence[str] = (),
    labels: Mapping[Path, Label] | None = None,
) -> Comparison:
    """Compares finished runs, and writes the page with Markdown and CSV next to it.

    Args:
        paths: run directories, or folders that hold some.
        output: ``FILE.html``.
        baseline: the run to compare with; None for full data without Bullet under the same loss.
        images: test images to show attacked, of each method.
        sections: what comes with the comparison.
        left_out: which runs are known to be missing, and why, a line each.
        labels: of runs that were planned, by their directories.

    Raises:
        UserError: a path, the baseline or the output cannot be used, or a run is damaged.
    """
    page.refuse_foreign(output)
    missing = [f"{path}: left out: not finished (no report.json)" for path in unfinished(paths)]
    comparison = compare(find_runs(paths), baseline, [*left_out, *missing], labels)
    with Display() as display, display.task("images") as update:
        shown = pictures(comparison, images, update)
    page.write(comparison, output, sections, shown)
    return comparison
