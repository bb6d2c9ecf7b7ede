"""Model cards: what a version is, what it was made from, how good it is and what it is not for. Markdown, under 5 KB.

After Mitchell et al. 2019, "Model Cards for Model Reporting" (https://arxiv.org/abs/1810.03993).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ssl_core.config.project import ProjectConfig
from ssl_core.contracts import ArtifactRef, DatasetRef, ModelRef
from ssl_core.modalities import noun

_NOT_A_RECIPE = ("when", "checkpoint_seconds", "device", "threads")


def _header(project: ProjectConfig, title: str) -> list[str]:
    lines = [f"# {title}", ""]
    if project.description:
        lines += [project.description, ""]
    return [*lines, f"Project `{project.name}`" + (f", owner {project.owner}" if project.owner else "") + ".", ""]


def _data(project: ProjectConfig, dataset: DatasetRef) -> list[str]:
    labels = f"{dataset.labelled} labelled, {dataset.classes} classes" if dataset.labelled else "no labels"
    return [
        "## Data",
        "",
        f"`{dataset.tag or dataset.name}`: {dataset.rows} {noun(project.modality)}, {labels}. Content `{dataset.md5}`, revision `{dataset.revision[:12]}`.",
        "",
    ]


def _settings(section: BaseModel) -> str:
    """A section of the configuration in one line: what it is called, then the plain values in it."""
    values = section.model_dump(mode="json", exclude_none=True)
    name = values.pop("name", None) or values.pop("arch", None)
    words = [
        f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in values.items()
        if not isinstance(value, dict) and key not in _NOT_A_RECIPE
    ]
    return ", ".join([*([str(name)] if name else []), *words])


def _lineage(rows: Mapping[str, str]) -> list[str]:
    return ["## Lineage", "", *(f"- {name}: {value}" for name, value in rows.items() if value), ""]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def encoder_card(
    project: ProjectConfig, dataset: DatasetRef, encoder: ArtifactRef, health: Mapping[str, Any], run_url: str
) -> str:
    """The card of an encoder, with the label-free health report."""
    objective, training, what = project.objective, project.pretrain, noun(project.modality)
    lines = _header(project, f"{project.name}-encoder") + _data(project, dataset)
    lines += [
        "## Recipe", "",
        f"{_settings(objective)}; {_settings(training)}. Encoder {_settings(project.encoder)}. No label was read.",
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
        f"Gives one embedding a sample: for neighbours, clusters, probes and fine-tuning on {what} like the above. Its features say nothing "
        f"reliable about {what} of another kind. A few training {what} travel with it as its self-test (`golden.safetensors`).",
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
    evaluation: Mapping[str, Any], training: Mapping[str, Any], run_url: str, forgetting: Sequence[str] = (),
) -> str:  # fmt: skip
    """The card of a fine-tuned model, with "did it help?" and, after the first champion, what was forgotten."""
    task = project.task
    budget = training.get("label_budget", task.labels)
    # What was done, not what was asked for: few samples take more epochs, since there is a least number of steps.
    what = noun(project.modality)
    duration = f"{training.get('epochs', task.epochs):g} epochs"
    duration += f" ({training['steps']} steps)" if "steps" in training else ""
    count = f" ({training['labels']} labelled {what})" if "labels" in training else ""
    spread = f"labels spread over the unlabeled training {what}" if training.get("spread") else f"labelled {what} only"
    lines = _header(project, project.name) + _data(project, dataset)
    recipe = f"{encoder.name} version {encoder.version}, {duration}, label budget {budget}{count}, {spread}, {_seeds(training, task.seed)}"
    lines += ["## Recipe", "", f"{task.name}: {task.method} fine-tuning of {recipe}.", ""]
    if going_on := training.get("going_on"):
        lines += [_going_on(project.name, going_on), ""]
    lines += _quality(evaluation, what)
    if forgetting:
        lines += [
            "## Forgetting",
            "",
            "Quality on each test window (dataset version; test samples), * where it was learned:",
            "",
            *forgetting,
            "",
        ]
    lines += [
        "## Use and limits", "",
        f"Answers for {what} like those of the dataset, and always gives an answer: something else gets one too. "
        "The figures hold for the test split of the dataset above and for nothing that differs from it. "
        f"A few training {what} travel with it as its self-test (`golden.safetensors`).",
        "",
    ]  # fmt: skip
    lines += _lineage({
        "MLflow run": run_url, "encoder": f"`{encoder.name}` version {encoder.version}, run `{encoder.run_id}`",
        "made by": f"`{model.producer}`", "weights": f"`{model.uri}`, SHA-256 `{model.sha256}`",
    })  # fmt: skip
    return "\n".join(lines)


def _seeds(training: Mapping[str, Any], seed: int) -> str:
    trials = training.get("seeds") or []
    if len(trials) < 2:
        return f"seed {seed}"
    known = [trial["val_quality"] for trial in trials if trial.get("val_quality") is not None]
    spread = f", {min(known):.3f} to {max(known):.3f} on val" if known else ""
    return f"the median of {len(trials)} seeds (seed {training.get('chosen')}{spread})"


def _going_on(project: str, how: Mapping[str, Any]) -> str:
    """How a model went on from a champion, in one paragraph."""
    text = (
        f"It went on from `{project}` version {how['champion']} ({how['champion_dataset']}): {how['new_labels']} new labels, "
        f"{how['replayed_labels']} of {how['known_labels']} known ones again, rates times {how['rate']:g}, L2-SP {how['anchor']:g}"
    )
    if how["ewc"]:
        text += f", EWC {how['ewc']:g}"
    return f"{text}; {how['alpha']:.0%} of the way from the champion's weights to the new ones, chosen on val."


def _quality(evaluation: Mapping[str, Any], what: str) -> list[str]:
    lines = ["## Quality", ""]
    model = evaluation.get("model") or {}
    if "quality" in model:
        interval = (
            f", 95% interval {model['low']:.3f} to {model['high']:.3f}" if "low" in model and "high" in model else ""
        )
        size = f" on {model['n']} test {what}" if "n" in model else ""
        lines += [f"{model['headline'][:1].upper()}{model['headline'][1:]} {model['quality']:.3f}{interval}{size}.", ""]
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
