"""What the gate looks at beside quality: where a challenger comes from, what it was trained on, how sure it is, size and speed.

Each check gives ``Finding``s (``registry.judge``): in words, with what it alone would say. Quantities come in; only
``weights_digest``, ``megabytes``, ``latency_ms``, ``training_record`` and ``validation_of`` read anything.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.config.promotion import PromotionConfig
from ssl_core.contracts import GOLDEN_FILE, DatasetRef, ModelRef, Verdict
from ssl_core.data.table import SampleTable
from ssl_core.data.windows import version_number
from ssl_core.evaluation.metrics import CALIBRATION_BINS, expected_calibration_error
from ssl_core.evaluation.predictions import Predictions
from ssl_core.registry import versions
from ssl_core.registry.judge import Finding
from ssl_core.store import Store, file_sha256

TRAINING_FILE = "training.json"
_FEWEST_SEEDS = 3
_RESAMPLES = 500
_ANSWERS = 60
_WARM_UP = 5


# ---- where it comes from


def copy_of_champion(challenger: str, champion: str, version: str) -> list[Finding]:
    """The digests of both models' weights: promoting a copy would only rename the champion."""
    if challenger != champion:
        return []
    return [Finding("copy", Verdict.REJECT, f"a copy of the champion: its weights are those of version {version}")]


def stale(challenger_dataset: str, champion_dataset: str, version: str) -> list[Finding]:
    """A challenger from an older dataset version than the champion's knows less than it, however the test set falls."""
    mine, theirs = version_number(challenger_dataset), version_number(champion_dataset)
    if mine is None or theirs is None or mine >= theirs:
        return []
    text = f"stale: trained on {challenger_dataset}, the champion (version {version}) on {champion_dataset}"
    return [Finding("stale", Verdict.REJECT, f"{text}; train it on {champion_dataset} or newer")]


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files alone: what describes them (dataset, dates) may differ between two copies."""
    files = sorted(path for path in folder.rglob("*.safetensors") if path.name != GOLDEN_FILE)
    listing = [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest() if listing else ""


# ---- what it was trained on


def training_record(folder: Path) -> dict[str, Any]:
    """``training.json``; empty where there is none."""
    try:
        found = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def validation_of(store: Store, dataset: DatasetRef) -> bool | None:
    """Whether the content of a dataset version passed validation; None where the store holds no report on it."""
    found = None
    for key in store.names(f"{dataset.name}/validate"):
        raw = store.read(f"{dataset.name}/validate/{key}/out/validation/validation.json")
        try:
            report = json.loads(raw) if raw else {}
            if report.get("dataset", {}).get("md5") == dataset.md5:
                found = found or report["passed"] is True
        except (ValueError, KeyError, AttributeError):
            continue
    return found


def validation(passed: bool | None, dataset: DatasetRef) -> list[Finding]:
    """The validation status of the training data."""
    name = dataset.tag or f"the unpublished data {dataset.md5[:12]}"
    if passed:
        return []
    if passed is None:
        text = f"no validation report on {name} in this store: nobody knows whether its training data passed"
        return [Finding("validation", Verdict.NEEDS_HUMAN, text)]
    return [Finding("validation", Verdict.REJECT, f"its training data, {name}, did not pass validation")]


def leakage(record: Mapping[str, Any], table: SampleTable, test_ids: Collection[str], held_out: str) -> list[Finding]:
    """Samples that are both trained on and judged by, by content (``sample_id``) or as near-duplicates (``group``).

    Labels trained on: REJECT, for the model was told the answers. Samples of split train without their label (the encoder has
    seen them): NEEDS_HUMAN. A record that names no samples: NEEDS_HUMAN.
    """
    trained = record.get("sample_ids")
    if not isinstance(trained, list):
        text = f"{TRAINING_FILE} names no sample_ids: whether it was trained on the {held_out} cannot be checked"
        return [Finding("leakage", Verdict.NEEDS_HUMAN, text)]
    ids = table.manifest["sample_id"].to_numpy()
    groups = table.manifest["group"].to_numpy()
    judged_by, taught = np.isin(ids, list(test_ids)), np.isin(ids, trained)
    groups_judged = set(groups[judged_by])
    same = len(set(trained) & set(test_ids))
    near = int(sum(group in groups_judged for group in groups[taught & ~judged_by]))
    if same or near:
        text = (
            f"leakage: trained on the labels of {same} samples of the {held_out}, and of {near} near-duplicates of them"
        )
        return [Finding("leakage", Verdict.REJECT, text)]
    unlabeled = (table.manifest["split"].to_numpy() == "train") & ~taught & ~judged_by
    near = int(sum(group in groups_judged for group in groups[unlabeled]))
    if near:
        text = f"leakage: split train holds {near} near-duplicates of samples of the {held_out}, which the encoder may have seen"
        return [Finding("leakage", Verdict.NEEDS_HUMAN, text)]
    return []


def champion_leakage(record: Mapping[str, Any], test_ids: Collection[str], version: str) -> list[Finding]:
    """The champion's own: after a change of ``data.split`` it may be judged by what it was trained on, and look better than it is."""
    trained = record.get("sample_ids")
    same = len(set(trained) & set(test_ids)) if isinstance(trained, list) else 0
    if not same:
        return []
    text = f"the champion (version {version}) was trained on {same} of the test samples (was data.split changed?): they speak for it"
    return [Finding("champion leakage", Verdict.NEEDS_HUMAN, text)]


def seeds(record: Mapping[str, Any]) -> list[Finding]:
    """How far apart fine-tuning with other seeds ended: a word to the reader, never a verdict."""
    found = record.get("seeds")
    runs = [run for run in found if isinstance(run, dict)] if isinstance(found, list) else []
    qualities = [float(run["val_quality"]) for run in runs if run.get("val_quality") is not None]
    if len(runs) < 2:
        text = "fine-tuned with one seed only: how much of the difference is luck of the seed is not known (task.seeds)"
    elif not qualities:
        text = f"fine-tuned with {len(runs)} seeds; without labels on split val the median was taken by training loss"
    else:
        apart = f"quality on val {min(qualities):.3f} to {max(qualities):.3f}"
        text = f"fine-tuned with {len(runs)} seeds, the median one kept: {apart}"
        if len(runs) < _FEWEST_SEEDS:
            text += f"; {_FEWEST_SEEDS} or more would say more"
    return [Finding("seeds", Verdict.PROMOTE, text)]


# ---- how sure it is


def calibration(
    mine: Predictions, theirs: Predictions, promotion: PromotionConfig, *, seed: int = 0
) -> tuple[list[Finding], dict[str, float]]:
    """The challenger's expected calibration error against the champion's, on the samples that both hold; and both as metrics.

    Only where a sample has one class. Larger than the champion's by more than ``promotion.max_calibration_loss``, with the whole
    paired 95% bootstrap interval above it: REJECT; larger for sure, but perhaps by less: NEEDS_HUMAN; else nothing.
    """
    if mine.label_type != "class":
        return [], {}
    rows = {sample: i for i, sample in enumerate(theirs.sample_ids)}
    pairs = np.asarray([(i, rows[s]) for i, s in enumerate(mine.sample_ids) if s in rows], dtype=np.int64)
    a, b = pairs.T
    names = [*mine.classes, *(name for name in theirs.classes if name not in mine.classes)]
    other = np.zeros((len(pairs), len(names)), dtype=np.float32)
    other[:, [names.index(name) for name in theirs.classes]] = theirs.scores[b]
    own, labels = mine.scores[a], mine.labels[a]
    ece = expected_calibration_error(own, labels), expected_calibration_error(other, labels)
    metrics = {"ece": ece[0], "champion_ece": ece[1]}
    gap = ece[0] - ece[1]
    if gap <= promotion.max_calibration_loss:
        return [], metrics
    low, high = _calibration_interval(own, other, labels, seed)
    text = (
        f"its calibration error (ECE) is {ece[0]:.3f}, the champion's {ece[1]:.3f}: larger by {gap:.3f} "
        f"(95% interval {low:+.3f} to {high:+.3f}), allowed {promotion.max_calibration_loss:g} (promotion.max_calibration_loss)"
    )
    if low > promotion.max_calibration_loss:
        return [Finding("calibration", Verdict.REJECT, text)], metrics
    return [Finding("calibration", Verdict.NEEDS_HUMAN if low > 0 else Verdict.PROMOTE, text)], metrics


def _calibration_interval(own: np.ndarray, other: np.ndarray, labels: np.ndarray, seed: int) -> tuple[float, float]:
    random, n = np.random.default_rng(seed), len(labels)
    parts = [_binned(scores, labels) for scores in (own, other)]
    gaps = np.empty(_RESAMPLES)
    for draw in range(_RESAMPLES):
        weights = np.bincount(random.integers(0, n, n), minlength=n)
        mine, theirs = (
            np.abs(np.bincount(which, weights=gap * weights, minlength=CALIBRATION_BINS)).sum() / n
            for which, gap in parts
        )
        gaps[draw] = mine - theirs
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)


def _binned(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each sample and its part in that bin's gap; see ``expected_calibration_error``."""
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    return which, right - confidence


# ---- size and speed


def megabytes(folder: Path) -> float:
    """Size of a model's files, in 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def size(found: float, promotion: PromotionConfig) -> list[Finding]:
    """The size against its budget."""
    if promotion.max_megabytes is None or found <= promotion.max_megabytes:
        return []
    text = f"too large: {found:.1f} MB, allowed {promotion.max_megabytes:g} (promotion.max_megabytes)"
    return [Finding("size", Verdict.REJECT, text)]


def latency(found: float, promotion: PromotionConfig) -> list[Finding]:
    """The latency, 95th percentile in milliseconds, against its budget."""
    if promotion.max_latency_ms is None or found <= promotion.max_latency_ms:
        return []
    text = (
        f"too slow: 95 of 100 single answers within {found:.1f} ms on this machine, "
        f"allowed {promotion.max_latency_ms:g} (promotion.max_latency_ms)"
    )
    return [Finding("latency", Verdict.REJECT, text)]


def latency_ms(model: ModelRef, golden: Path, budget: float) -> float:
    """95th percentile of the time of one answer to one sample, in milliseconds, of the model as it is served.

    The samples are those of the golden batch; decoding and preprocessing count. Above ``budget`` it is measured once more and
    the faster one counts: a machine that was busy for a moment is no fault of the model.
    """
    from safetensors.numpy import load_file

    from ssl_core.serving.package import package_of

    batch = load_file(golden)
    requests = package_of(batch).request(batch)
    found = np.inf
    with versions.loaded(f"models:/{model.name}/{model.version}") as served:
        for _ in range(2):
            times = []
            for i in range(_WARM_UP + _ANSWERS):
                one = requests.iloc[[i % len(requests)]]
                start = time.perf_counter()
                served.predict(one)
                times.append(1000 * (time.perf_counter() - start))
            found = min(found, float(np.quantile(times[_WARM_UP:], 0.95)))
            if found <= budget:
                break
    return found
