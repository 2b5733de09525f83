"""README.md of an exported model: what the Hugging Face Hub reads of it, and what a person does."""

from __future__ import annotations

import json
from typing import Any

from robustcords.evaluation.results import CLEAN, Evaluation
from robustcords.report.markdown import plain
from robustcords.report.run_report import Report
from robustcords.report.run_tables import accuracy_table, title


def model_card(report: Report | None, config: dict[str, Any], file: str, use: str) -> str:
    """Returns README.md: metadata, what the model is, what was measured, and how it is loaded.

    Args:
        report: the run's; None where it has none.
        config: what config.json holds.
        file: the model's.
        use: lines of Python that load it.
    """
    images, threat, which = config["images"], config["threat"], config["weights"]
    size = " x ".join(str(images[key]) for key in ("channels", "height", "width"))
    measured = report.evaluation.get(which) if report else None
    lines = [
        "---",
        "library_name: pytorch",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness]",
        *(_results(measured, config) if measured else []),
        "---",
        f"# {plain(title(report)) if report else plain(config['model'])}",
        "",
        f"An image classifier of {len(config['classes'])} classes, trained to be robust to perturbations of norm "
        f"{threat['norm']} up to {threat['epsilon']:.4g} with robustcords. It takes images of {size} with pixels in "
        "[0, 1]; the normalisation is its first layer.",
        "",
    ]
    if report and measured:
        of_these = report.model_copy(update={"evaluation": {which: measured}})
        lines += ["## Measured", "", accuracy_table(of_these), ""]
    lines += [
        "## Use",
        "",
        "```python",
        use,
        "```",
        "",
        f"`{file}` is the model, `model.safetensors` its weights by name; `config.json` says what it takes and names "
        "the classes.",
        "",
    ]
    return "\n".join(lines)


def _results(measured: Evaluation, config: dict[str, Any]) -> list[str]:
    """Returns the accuracies as the metadata that the Hub shows next to a model."""
    metrics = [
        {
            "type": "accuracy",
            "name": CLEAN
            if each.attack == CLEAN
            else f"{each.name}, {config['threat']['norm']} {each.radius or ''}".strip(),
            "value": each.accuracy,
        }
        for each in measured.measurements
        if each.accuracy is not None
    ]
    data = {"type": config["data"], "name": config["data"], "split": "test"}
    return [
        f"datasets: {json.dumps([config['data']])}",
        "model-index:",
        f"- name: {json.dumps(config['name'])}",
        "  results:",
        "  - task: {type: image-classification}",
        f"    dataset: {json.dumps(data)}",
        "    metrics:",
        *(f"    - {json.dumps(metric)}" for metric in metrics),
    ]
