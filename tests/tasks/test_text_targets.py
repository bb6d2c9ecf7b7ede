"""Losses by hand, weights that make classes count the same, and labels that nobody may read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssl_core.config.tasks import TextClassificationConfig
from ssl_core.errors import UserError
from ssl_core.tasks.text_targets import balanced_weights, loss_of, loss_of_scores, make_targets
from tests.texts import make_texts, sentences


def config(**changes: Any) -> TextClassificationConfig:
    return TextClassificationConfig(**changes)


def test_losses_in_closed_form() -> None:
    zeros, ones = torch.zeros(3, 4), torch.ones(3, 4)
    assert float(loss_of("class", zeros, torch.eye(4)[:3], ones)) == pytest.approx(math.log(4))
    assert float(loss_of("classes", zeros, torch.eye(4)[:3], ones)) == pytest.approx(math.log(2))
    assert float(loss_of("number", torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [1.0]]), ones)) == pytest.approx(
        2
    )


def test_losses_equal_the_librarys() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1, 0])
    one_hot, ones = torch.eye(3)[labels], torch.ones(5, 3)
    texts = make_texts(sentences(5), ["abc"[k] for k in labels])
    targets = make_targets(texts.table, np.arange(5), config())
    smoothed = torch.from_numpy(targets.smoothed(0.2))
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert float(loss_of("class", logits, smoothed, ones)) == pytest.approx(float(wanted), rel=1e-6)
    assert float(loss_of("classes", logits, one_hot, ones)) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(logits, one_hot)), rel=1e-6
    )
    # Of answers it is the same loss as of logits.
    scores = logits.softmax(1).numpy()
    assert loss_of_scores(targets, scores) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_balanced_classes_weigh_the_same() -> None:
    values = np.eye(3, dtype=np.float32)[[0] * 6 + [1] * 2]
    weights = balanced_weights(values, "class")
    assert weights[0].tolist() == pytest.approx([8 / 12] * 3)
    assert weights[7].tolist() == pytest.approx([8 / 4] * 3)
    assert weights[:, 0].mean() == pytest.approx(1)
    several = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=np.float32)
    weights = balanced_weights(several, "classes")
    assert weights[:, 0].tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])
    assert weights[:, 1:].tolist() == [[1, 1]] * 4, "where all are alike there is nothing to balance"


def test_several_classes_and_smoothing() -> None:
    texts = make_texts(sentences(4), [["a", "c"], [], ["c"], None], label_type="classes", classes=["a", "b", "c"])
    targets = make_targets(texts.table, np.arange(3), config())
    assert targets.values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert targets.smoothed(0.2)[0].tolist() == pytest.approx([0.9, 0.1, 0.9])
    assert loss_of_scores(targets, np.full((3, 3), 0.5)) == pytest.approx(math.log(2))


def test_numbers_are_standardised_by_the_budget_alone() -> None:
    texts = make_texts(sentences(4), [1.0, 3.0, 1e9, None], label_type="number")
    targets = make_targets(texts.table, np.arange(2), config(label_smoothing=0.5))
    assert (targets.mean, targets.scale) == (2, 1)
    assert targets.values.tolist() == [[-1], [1]]
    assert targets.smoothed(0.5).tolist() == [[-1], [1]], "a number has no other classes"
    alike = make_targets(make_texts(sentences(2), [5, 5], label_type="number").table, np.arange(2), config())
    assert (alike.mean, alike.scale) == (5, 1)
    assert alike.values.tolist() == [[0], [0]]
    with pytest.raises(UserError, match=r"task\.class_weights"):
        make_targets(texts.table, np.arange(2), config(class_weights="balanced"))


@pytest.mark.parametrize("label_type", ["class", "classes", "number"])
def test_labels_outside_the_budget_are_not_so_much_as_parsed(label_type: Any) -> None:
    labels: list[Any] = {"class": ["a", "b"] * 4, "classes": [["a"], ["a", "b"]] * 4, "number": [1, 2] * 4}[label_type]
    texts = make_texts(sentences(8), labels, label_type=label_type)
    clean = make_targets(texts.table, np.arange(6), config())
    texts.table.manifest.loc[6:, "label"] = "poison {"
    poisoned = make_targets(texts.table, np.arange(6), config())
    assert np.array_equal(clean.values, poisoned.values)
    assert np.array_equal(clean.strata, poisoned.strata)
    with pytest.raises((ValueError, KeyError)):
        make_targets(texts.table, np.arange(7), config())
