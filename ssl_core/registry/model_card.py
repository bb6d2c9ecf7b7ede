"""Model cards: what a version is, what it was made from, how good it is and what it is not for. Markdown, under 5 KB.

After Mitchell et al. 2019, "Model Cards for Model Reporting" (https://arxiv.org/abs/1810.03993).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef


def _header(project: ProjectConfig, title: str) -> list[str]:
    lines = [f"# {title}", ""]
    if project.description:
        lines += [project.description, ""]
    return [*lines, f"Project `{project.name}`" + (f", owner {project.owner}" if project.owner else "") + ".", ""]


def _data(dataset: DatasetRef) -> list[str]:
    labels = f"{dataset.labelled} labelled, {dataset.classes} classes" if dataset.labelled else "no labels"
    return [
        "## Data",
        "",
        f"`{dataset.tag or dataset.name}`: {dataset.rows} images, {labels}. Content `{dataset.md5}`, revision `{dataset.revision[:12]}`.",
        "",
    ]


def _lineage(rows: Mapping[str, str]) -> list[str]:
    return ["## Lineage", "", *(f"- {name}: {value}" for name, value in rows.items() if value), ""]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def encoder_card(
    project: ProjectConfig, dataset: DatasetRef, encoder: ArtifactRef, health: Mapping[str, Any], run_url: str
) -> str:
    """The card of an encoder, with the label-free health report."""
    objective, training = project.objective, project.pretrain
    lines = _header(project, f"{project.name}-encoder") + _data(dataset)
    lines += [
        "## Recipe", "",
        f"{objective.name}, temperature {objective.temperature:g}, {training.epochs} epochs, batch size {training.batch_size}, "
        f"seed {training.seed}. Encoder {project.encoder.arch}, widths {list(project.encoder.widths)}, {project.encoder.norm} normalisation. No label was read.",
        "",
    ]  # fmt: skip
    flat = {name: value for name, value in health.items() if isinstance(value, int | float | str | bool)}
    flat |= {
        f"{outer}.{name}": v
        for outer, inner in health.items()
        if isinstance(inner, Mapping)
        for name, v in inner.items()
        if isinstance(v, int | float | str | bool)
    }
    if flat:
        lines += [
            "## Health",
            "",
            "| gauge | value |",
            "|---|---|",
            *(f"| {name} | {_number(value)} |" for name, value in list(flat.items())[:30]),
            "",
        ]
    lines += [
        "## Use and limits", "",
        "Gives one embedding an image: for neighbours, clusters, probes and fine-tuning on data like the above. Its features say nothing "
        "reliable about images of another kind. A few training images travel with it as its self-test (`golden.safetensors`).",
        "",
    ]  # fmt: skip
    lines += _lineage(
        {
            "MLflow run": run_url,
            "made by": f"`{encoder.producer}`",
            "weights": f"`{encoder.uri}`, SHA-256 `{encoder.sha256}`",
        }
    )
    return "\n".join(lines)


def model_card(
    project: ProjectConfig, dataset: DatasetRef, encoder: ModelRef, model: ArtifactRef,
    evaluation: Mapping[str, Any], training: Mapping[str, Any], run_url: str,
) -> str:  # fmt: skip
    """The card of a fine-tuned model, with "did it help?"."""
    task = project.task
    budget = training.get("label_budget", task.labels)
    # What was done, not what was asked for: few images take more epochs, since there is a least number of steps.
    duration = f"{training.get('epochs', task.epochs):g} epochs"
    duration += f" ({training['steps']} steps)" if "steps" in training else ""
    count = f" ({training['labels']} labelled images)" if "labels" in training else ""
    spread = (
        "labels spread over the unlabeled training images"
        if training.get("spread", task.spread_labels)
        else "labelled images only"
    )
    lines = _header(project, project.name) + _data(dataset)
    lines += [
        "## Recipe",
        "",
        f"{task.name}: {task.method} fine-tuning of {encoder.name} version {encoder.version}, {duration}, label budget {budget}{count}, {spread}, seed {task.seed}.",
        "",
    ]
    lines += _quality(evaluation)
    lines += [
        "## Use and limits", "",
        "Sorts images like those of the dataset into its classes, and always answers one of them: an image of something else gets a class too. "
        "The figures hold for the test split of the dataset above and for nothing that differs from it. "
        "A few training images travel with it as its self-test (`golden.safetensors`).",
        "",
    ]  # fmt: skip
    lines += _lineage({
        "MLflow run": run_url, "encoder": f"`{encoder.name}` version {encoder.version}, run `{encoder.run_id}`",
        "made by": f"`{model.producer}`", "weights": f"`{model.uri}`, SHA-256 `{model.sha256}`",
    })  # fmt: skip
    return "\n".join(lines)


def _quality(evaluation: Mapping[str, Any]) -> list[str]:
    lines = ["## Quality", ""]
    model = evaluation.get("model") or {}
    if "accuracy" in model:
        interval = (
            f", 95% interval {model['low']:.3f} to {model['high']:.3f}" if "low" in model and "high" in model else ""
        )
        size = f" on {model['n']} test images" if "n" in model else ""
        lines += [f"Accuracy {model['accuracy']:.3f}{interval}{size}.", ""]
    budgets = evaluation.get("label_budgets") or []
    if budgets:
        lines += [
            "Did pretraining help? Accuracy with frozen features, mean and 95% interval:",
            "",
            "| labels | classical | random init | pretrained |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['labels']} | {_cell(row.get('classical'))} | {_cell(row.get('random_init'))} | {_cell(row.get('pretrained'))} |"
            for row in budgets
        ]
        lines.append("")
    return lines


def _cell(cell: Mapping[str, Any] | None) -> str:
    if not cell or "mean" not in cell:
        return "-"
    low, high = cell.get("low"), cell.get("high")
    interval = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{cell['mean']:.3f}{interval}"
