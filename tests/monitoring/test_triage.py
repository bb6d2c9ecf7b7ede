"""Worlds that moved in known ways: a small champion on real digits, windows of real pictures, and what triage makes of them."""

from __future__ import annotations

import string
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from ssl_core.config.monitor import MonitorConfig
from ssl_core.data.samples.shift import shift
from ssl_core.monitoring import evidence, feed, mix
from ssl_core.monitoring.columns import compare_columns
from ssl_core.monitoring.document import EmbeddingTests, Finding, Performance, Predictions
from ssl_core.monitoring.evidence import Side
from ssl_core.monitoring.triage import Evidence, Part, Probe, Separation, triage
from ssl_core.monitoring.two_sample import classifier_test, mmd_test

CONFIG = MonitorConfig()
CLASSES = np.array(list(string.digits))


@dataclass(frozen=True)
class Champion:
    """A network of one hidden layer, which is its encoder; the reference it was not trained on; and the pictures that are left."""

    network: MLPClassifier
    reference: Side
    pixels: np.ndarray
    labels: np.ndarray

    def side(self, pixels: np.ndarray, labels: Sequence[str | None], source: Sequence[str] | str = "a.png") -> Side:
        return _side(self.network, pixels, labels, source)

    def draw(
        self, count: int = 200, seed: int = 0, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[str | None]]:
        """Pictures, and their labels; classes come as often as ``weights`` say."""
        p = None if weights is None else weights[self.labels] / weights[self.labels].sum()
        rows = np.random.default_rng(seed).choice(len(self.labels), count, replace=False, p=p)
        return self.pixels[rows], CLASSES[self.labels[rows]].tolist()


def _side(
    network: MLPClassifier, pixels: np.ndarray, labels: Sequence[str | None], source: Sequence[str] | str
) -> Side:
    flat = pixels.reshape(len(pixels), 64) / 255
    hidden = np.maximum(flat @ network.coefs_[0] + network.intercepts_[0], 0).astype(np.float32)
    manifest = pd.DataFrame({
        "source": source, "label": pd.Series(labels, dtype=object), "brightness": flat.mean(axis=1), "contrast": flat.std(axis=1), "width": 8,
    })  # fmt: skip
    known = np.array([int(one) if one is not None and one in CLASSES else -1 for one in labels])
    return Side(hidden, manifest, network.predict_proba(flat), known)


@pytest.fixture(scope="module")
def champion() -> Champion:
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels, labels = np.rint(found.images[order] * (255 / 16)).astype(np.uint8), found.target[order]
    network = MLPClassifier((64,), max_iter=60, tol=0.01, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is good enough before it converges
        network.fit(pixels[:600].reshape(-1, 64) / 255, labels[:600])
    reference = _side(network, pixels[600:1100], CLASSES[labels[600:1100]].tolist(), "a.png")
    return Champion(network, reference, pixels[1100:], labels[1100:])


def seen(reference: Side, window: Side, **more: object) -> Evidence:
    """Evidence as the monitor gathers it, with thresholds that are fixed here."""
    auc, mmd = (test(reference.embeddings, window.embeddings, permutations=199) for test in (classifier_test, mmd_test))
    differs = (auc.effect >= 0.57 and auc.p_value <= 0.01) or (mmd.effect >= 0.006 and mmd.p_value <= 0.01)
    embedding = EmbeddingTests(
        auc=auc.effect, auc_p=auc.p_value, auc_threshold=0.57, mmd=mmd.effect, mmd_p=mmd.p_value, mmd_threshold=0.006, draws=1,
        exceeded=differs,
    )  # fmt: skip
    assert reference.probabilities is not None
    assert window.probabilities is not None
    answers = [pd.DataFrame({"answer": CLASSES[side.argmax(axis=1)]}) for side in (reference.probabilities, window.probabilities)]  # fmt: skip
    (answer,) = compare_columns(*answers, {"answer": "category"})
    predictions = Predictions(psi=answer.psi, q=answer.q_value, classes=[], confidence_reference=0, confidence_window=0)
    kinds = {"brightness": "number", "contrast": "number", "label": "category"}
    return evidence.gather(
        reference, window, CONFIG, embedding=embedding, columns=compare_columns(reference.manifest, window.manifest, kinds),
        predictions=predictions, nearness=evidence.novelty(reference.embeddings, window.embeddings),
        shift=mix.estimate(reference.probabilities, window.probabilities, reference.labels), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def judged(reference: Side, window: Side, **more: object) -> Finding:
    return triage(seen(reference, window, **more), CONFIG)


# ---- planted worlds


@pytest.mark.parametrize("seed", range(4))
def test_more_of_the_same_is_quiet(champion: Champion, seed: int) -> None:
    finding = judged(champion.reference, champion.side(*champion.draw(seed=seed)))
    assert (finding.kind, finding.action, finding.who) == ("quiet", "none", "platform")


@pytest.mark.parametrize("severity", [0.4, 0.7])
@pytest.mark.parametrize("labelled", [True, False])
def test_turned_thickened_and_noisy_digits_are_a_covariate_shift(
    champion: Champion, severity: float, labelled: bool
) -> None:
    pixels, labels = champion.draw()
    window = champion.side(shift(pixels, severity), labels if labelled else [None] * len(labels))
    finding = judged(champion.reference, window)
    assert (finding.kind, finding.action, finding.who) == ("covariate-shift", "finetune", "platform")


@pytest.mark.parametrize("weights", [{3: 8, 8: 8}, {1: 4, 7: 4}, {0: 0.1, 4: 4}])
@pytest.mark.parametrize("seed", range(2))
def test_another_mix_of_classes_is_a_prior_shift(champion: Champion, weights: dict[int, float], seed: int) -> None:
    shares = np.ones(10)
    shares[list(weights)] = list(weights.values())
    pixels, labels = champion.draw(seed=seed, weights=shares)
    finding = judged(champion.reference, champion.side(pixels, [None] * len(labels)))
    assert (finding.kind, finding.action, finding.who) == ("prior-shift", "recalibrate", "person")


def test_another_mix_of_digits_that_also_look_different_is_no_prior_shift(champion: Champion) -> None:
    shares = np.ones(10)
    shares[[3, 8]] = 8
    pixels, labels = champion.draw(weights=shares)
    finding = judged(champion.reference, champion.side(shift(pixels, 0.6), labels))
    assert finding.kind == "covariate-shift"
    assert any("does not explain it" in reason for reason in finding.reasons)


def test_letters_are_new_territory_and_their_names_are_told(champion: Champion) -> None:
    finding = judged(champion.reference, champion.side(*letters(200)))
    assert (finding.kind, finding.action, finding.who) == ("new-territory", "pretrain", "person")
    assert any("classes that the champion does not know" in reason for reason in finding.reasons)


def test_pictures_of_nothing_are_new_territory(champion: Champion) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (200, 8, 8)).astype(np.uint8)
    labels = CLASSES[generator.integers(0, 10, 200)].tolist()
    assert judged(champion.reference, champion.side(pixels, labels)).kind == "new-territory"


def letters(count: int) -> tuple[np.ndarray, list[str | None]]:
    """Printed capitals of many sizes and places, 8 x 8."""
    generator = np.random.default_rng(1)
    names = [str(generator.choice(list("ABCDEFGHKLMNPRSTUVWXYZ"))) for _ in range(count)]
    pictures = []
    for name in names:
        picture = Image.new("L", (32, 32))
        middle = (16 + int(generator.integers(-3, 4)), 16 + int(generator.integers(-3, 4)))
        font = ImageFont.load_default(int(generator.integers(22, 34)))
        ImageDraw.Draw(picture).text(middle, name, fill=255, font=font, anchor="mm")
        pictures.append(
            np.asarray(
                picture.rotate(float(generator.normal(0, 10))).resize((8, 8), Image.Resampling.BOX), dtype=np.uint8
            )
        )
    return np.stack(pictures), list(names)


CAMERAS = [f"camera-{n % 4}/{n:03d}.png" for n in range(240)]


def inverted(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    broken = pixels.copy()
    broken[rows] = 255 - broken[rows]
    return broken


def test_one_corrupt_source_is_a_data_bug_and_named(champion: Champion) -> None:
    pixels, labels = champion.draw(240)
    finding = judged(champion.reference, champion.side(inverted(pixels, np.arange(2, 240, 4)), labels, CAMERAS))
    assert (finding.kind, finding.action, finding.who) == ("data-bug", "quarantine", "person")
    assert "camera-2 alone explains the change" in finding.reasons[0]


def test_what_all_sources_show_is_no_fault_of_one(champion: Champion) -> None:
    pixels, labels = champion.draw(240)
    assert seen(champion.reference, champion.side(shift(pixels, 0.6), labels, CAMERAS)).culprit is None


def test_a_small_shift_that_all_sources_share_is_blamed_on_none() -> None:
    generator = np.random.default_rng(0)
    manifest = pd.DataFrame({"source": CAMERAS, "label": None})
    blamed = 0
    for seed in range(8):
        sides = [generator.normal(shift, 1, (count, 16)).astype(np.float32) for count, shift in ((600, 0.0), (240, 0.12))]  # fmt: skip
        reference, window = Side(sides[0], pd.DataFrame({"source": "a.png", "label": [None] * 600})), Side(sides[1], manifest)  # fmt: skip
        blamed += evidence.culprit(reference, window, CONFIG, seed) is not None
    assert blamed == 0


def test_a_source_without_any_other_to_compare_with_is_not_blamed(champion: Champion) -> None:
    pixels, labels = champion.draw(240)
    window = champion.side(inverted(pixels, np.arange(240)), labels, "camera-1/x.png")
    assert seen(champion.reference, window).culprit is None


def test_blank_pictures_show_in_a_column_that_repeats_one_value(champion: Champion) -> None:
    pixels, labels = champion.draw()
    pixels = pixels.copy()
    pixels[::4] = 0
    finding = judged(champion.reference, champion.side(pixels, labels))
    assert finding.kind == "data-bug"
    assert finding.reasons[0].startswith("brightness: 25% of the values are 0")


def test_labels_that_no_longer_fit_are_a_data_bug_though_the_samples_look_as_ever(champion: Champion) -> None:
    pixels, labels = champion.draw()
    worse = Performance(n=200, quality=0.4, reference_quality=0.95, difference=-0.55, low=-0.62, high=-0.48)
    finding = judged(champion.reference, champion.side(pixels, labels[::-1]), performance=worse)
    assert finding.kind == "data-bug"
    assert "the labels are wrong" in finding.reasons[0]


# ---- faults of the feed


def test_a_broken_feed_is_told_however_few_samples_there_are() -> None:
    evidence = Evidence(
        samples=3, exceeded=None, schema=["the column width is missing"], quarantined=0.25
    )  # fmt: skip
    finding = triage(evidence, CONFIG)
    assert finding.kind == "data-bug"
    assert finding.reasons == [
        "schema: the column width is missing", "25% of the window's files could not be used",
    ]  # fmt: skip


def frame(count: int = 400, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return pd.DataFrame({
        "source": "a.png", "label": None, "bytes": generator.integers(100, 900, count), "contrast": generator.uniform(0.1, 0.4, count),
        "channels": 1, "camera": generator.choice(["left", "right"], count),
    })  # fmt: skip


def test_windows_of_one_feed_have_no_faults() -> None:
    for seed in range(1, 30):
        assert feed.schema_differences(frame(), frame(60, seed)) == []
        assert feed.broken_columns(frame(), frame(60, seed)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.assign(contrast=f["contrast"].where(f.index % 5 > 0)), "contrast: 20% of the values are missing, 0% used to be"),
        (lambda f: f.assign(contrast=f["contrast"].where(f.index % 5 > 0, np.inf)), "contrast: 20% of the values are missing"),
        (lambda f: f.assign(camera="left"), "camera: always left, where the reference varies"),
        (lambda f: f.assign(contrast=0.0), "contrast: always 0, where the reference varies"),
        (lambda f: f.assign(contrast=f["contrast"].where(f.index % 5 > 0, 0)), "contrast: 20% of the values are 0, 0.0% used to be"),
        (lambda f: f.assign(contrast=f["contrast"] * 255), "contrast: 100% of the values are far outside of anything seen before"),
        (lambda f: f.assign(camera=None), "camera: 100% of the values are missing"),
    ],
)  # fmt: skip
def test_a_column_that_broke_is_told(change, told: str) -> None:  # type: ignore[no-untyped-def]
    faults = feed.broken_columns(frame(), change(frame(100, 1)))
    assert any(fault.startswith(told) for fault in faults), faults


@pytest.mark.parametrize("seed", range(1, 4))
def test_whole_numbers_that_come_again_are_no_fault(seed: int) -> None:
    generator = np.random.default_rng(seed)
    reference = pd.DataFrame({"words": generator.geometric(0.02, 500), "loud": generator.random(500) < 0.9})
    told = [feed.broken_columns(reference, reference.sample(50, replace=True, random_state=n)) for n in range(100)]
    few = [feed.broken_columns(reference, reference.sample(20, replace=True, random_state=n)) for n in range(100)]
    assert [faults for faults in told + few if faults] == []


def test_a_constant_column_may_stay_constant_and_few_rows_show_nothing() -> None:
    assert feed.broken_columns(frame(), frame(19, 1).assign(camera="left")) == []
    assert not any("channels" in fault for fault in feed.broken_columns(frame(), frame(100, 1)))


def test_files_of_one_size_are_another_scanner_and_no_fault() -> None:
    assert feed.broken_columns(frame(), frame(100, 1).assign(bytes=512)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop(columns="bytes"), "the column bytes is missing"),
        (lambda f: f.assign(depth=1), "the column depth is new"),
        (lambda f: f.assign(bytes=f["bytes"].astype(str)), "the column bytes holds texts and used to hold numbers"),
        (lambda f: f.assign(camera=1.5), "the column camera holds numbers and used to hold texts"),
    ],
)
def test_another_schema_is_told(change, told: str) -> None:  # type: ignore[no-untyped-def]
    assert feed.schema_differences(frame(), change(frame(100, 1))) == [told]


@pytest.mark.parametrize(
    ("paths", "labels", "names"),
    [
        (["left/1.png", "right/deep/2.png", "3.png"], [None] * 3, ["left", "right/deep", ""]),
        (["cat/1.png", "dog/2.png", "unlabeled/3.png"], ["cat", "dog", None], ["", "", ""]),
        (["cat/left/1.png", "dog/right/2.png"], ["cat", "dog"], ["left", "right"]),
        (["day-1.jsonl:7", "day-2.jsonl:9#2", "sub/day-2.csv:1"], ["a", None, None], ["day-1.jsonl", "day-2.jsonl", "sub/day-2.csv"]),
        (["reports/a.txt", "reports/b.txt#2"], [None, None], ["reports", "reports"]),
    ],
)  # fmt: skip
def test_where_samples_come_from(paths: list[str], labels: list[str | None], names: list[str]) -> None:
    manifest = pd.DataFrame({"source": paths, "label": pd.Series(labels, dtype=object)})
    assert feed.source_names(manifest).tolist() == names


def test_sources_are_counted_and_the_many_are_joined() -> None:
    counts = feed.source_counts(pd.DataFrame({"source": [f"s{n // 2}/{n}.png" for n in range(100)], "label": None}))
    assert len(counts) == 20
    assert sum(count.rows for count in counts) == 100
    assert counts[-1].name == "(other)"


# ---- the mix of classes


def gaussians(shares: Sequence[float], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of three normal classes, as exact probabilities for equal shares; and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, count, p=shares)
    centres = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    points = generator.normal(size=(count, 2)) + centres[labels]
    logs = -((points[:, None] - centres) ** 2).sum(axis=2) / 2
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True), labels


def test_the_shares_of_the_classes_are_found_without_labels() -> None:
    reference, _ = gaussians([1 / 3] * 3, 4000, 0)
    window, _ = gaussians([0.7, 0.2, 0.1], 4000, 1)
    found = mix.estimate(reference, window)
    assert found.before == pytest.approx([1 / 3] * 3, abs=0.02)
    assert found.after == pytest.approx([0.7, 0.2, 0.1], abs=0.045)
    assert found.weights(reference).mean() == pytest.approx(1, abs=0.01)


def test_a_recalibration_promises_what_it_then_brings() -> None:
    reference, _ = gaussians([1 / 3] * 3, 4000, 0)
    window, labels = gaussians([0.8, 0.1, 0.1], 4000, 1)
    found = mix.estimate(reference, window)
    told = mix.recalibration(found, window, ["a", "b", "c"])
    gain = (found.corrected(window).argmax(axis=1) == labels).mean() - (window.argmax(axis=1) == labels).mean()
    assert gain > 0.05
    assert told.expected_gain == pytest.approx(gain, abs=0.035)
    assert told.classes[0].name == "a"
    assert told.classes[0].after == pytest.approx(0.8, abs=0.03)
    assert 0 < told.changed < 0.3


def test_overconfident_probabilities_are_cooled_by_labels() -> None:
    probabilities, labels = gaussians([1 / 3] * 3, 4000, 0)
    overconfident = mix.tempered(probabilities, 0.5)
    assert mix.fit_temperature(overconfident, labels) == pytest.approx(2, rel=0.1)
    assert mix.fit_temperature(overconfident, np.where(np.arange(4000) < 40, labels, -1)) == 1
    assert mix.tempered(overconfident, 2) == pytest.approx(probabilities, abs=1e-6)


def test_matched_samples_cannot_be_told_apart() -> None:
    reference, _ = gaussians([1 / 3] * 3, 3000, 0)
    window, _ = gaussians([0.8, 0.15, 0.05], 600, 1)
    assert classifier_test(reference, window).effect > 0.65
    rows, others = mix.matched(mix.estimate(reference, window), reference, window)
    assert min(len(rows), len(others)) > 200
    assert classifier_test(reference[rows], window[others]).p_value > 0.05


def test_a_class_that_neither_side_has_is_no_division_by_zero() -> None:
    sides = [np.concatenate([gaussians([0.5, 0.5, 0], 100, seed)[0][:, :2], np.zeros((100, 1))], axis=1) for seed in (0, 1)]  # fmt: skip
    found = mix.estimate(*sides)
    assert np.isfinite(found.ratio).all()
    assert np.isfinite(mix.recalibration(found, sides[1], ["a", "b", "c"]).expected_gain)


def test_hundreds_of_classes_fit_into_the_report() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(300) / 10, 200)
    told = mix.recalibration(mix.estimate(probabilities, probabilities), probabilities, [f"c{n}" for n in range(300)])
    assert len(told.classes) == 60
    assert sum(one.after for one in told.classes) == pytest.approx(1)


# ---- numbers, and the rule by itself


def test_the_reference_is_as_far_from_itself_as_from_itself() -> None:
    points = np.random.default_rng(0).normal(size=(1200, 16))
    same = evidence.novelty(points[:800], points[800:])
    assert same is not None
    assert same.beyond == pytest.approx(0.05, abs=0.03)
    assert same.median_ratio == pytest.approx(1, abs=0.05)
    assert evidence.novelty(points[:800], points[:10]) is None
    assert evidence.novelty(points, np.full((30, 16), np.nan)) is None


def test_another_spread_separates_as_another_mean_does() -> None:
    generator = np.random.default_rng(0)
    reference, window = generator.normal(size=(400, 8)), generator.normal(size=(300, 8)) * 1.5
    found = evidence.separation(reference, window, 500, 0)
    assert found is not None
    assert found.is_seen(0.55)
    assert classifier_test(reference, window, permutations=0).effect < 0.6


def test_the_map_shows_both_sides_in_the_square() -> None:
    points = np.random.default_rng(0).normal(size=(900, 5))
    plane = evidence.flatten(points[:600], points[600:] + 3)
    assert plane is not None
    assert len(plane.window) == 300
    assert len(plane.reference) == 300
    assert np.abs(np.array(plane.reference + plane.window)).max() == 1
    assert np.mean(plane.window, axis=0)[0] * np.mean(plane.reference, axis=0)[0] < 0
    assert evidence.flatten(points[:1], points[:1]) is None


FAR = Evidence(samples=200, exceeded=True, auc=0.9, beyond=0.9, median_ratio=3.0)
MIXED = Evidence(samples=200, exceeded=True, auc=0.7, mix_psi=0.5, mix_q=1e-6)


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (FAR, "new-territory"),
        (replace(FAR, sureness=0.9), "covariate-shift"),
        (replace(FAR, sureness=0.4), "new-territory"),
        (replace(FAR, sureness=0.9, probe=Probe(100, 0.95, 0.3, 0.1)), "new-territory"),
        (replace(FAR, sureness=0.1, probe=Probe(100, 0.95, 0.9, 0.1)), "covariate-shift"),
        (replace(FAR, beyond=0.3), "covariate-shift"),
        (replace(FAR, beyond=None), "covariate-shift"),
        (replace(FAR, broken=["width: always 1"]), "data-bug"),
        (replace(FAR, samples=49), "cannot-tell"),
        (replace(FAR, exceeded=None), "cannot-tell"),
        (replace(FAR, culprit=Part("the source x", 40, Separation(0.9, 0.005), Separation(0.5, 0.5))), "data-bug"),
        (MIXED, "covariate-shift"),
        (replace(MIXED, unexplained=Separation(0.52, 0.3)), "prior-shift"),
        (replace(MIXED, unexplained=Separation(0.6, 0.3)), "prior-shift"),
        (replace(MIXED, unexplained=Separation(0.54, 0.005)), "prior-shift"),
        (replace(MIXED, unexplained=Separation(0.8, 0.005)), "covariate-shift"),
        (replace(MIXED, exceeded=False), "prior-shift"),
        (replace(MIXED, exceeded=False, unexplained=Separation(0.8, 0.005)), "quiet"),
        (replace(MIXED, mix_q=0.03, exceeded=False), "quiet"),
        (replace(MIXED, mix_q=0.03, unexplained=Separation(0.52, 0.3)), "prior-shift"),
        (replace(MIXED, mix_q=0.2, unexplained=Separation(0.52, 0.3)), "covariate-shift"),
        (Evidence(samples=200, exceeded=False, label_psi=0.5, label_q=0.001), "quiet"),
        (Evidence(samples=200, exceeded=False, quality_low=-0.2, quality_high=-0.1), "data-bug"),
        (Evidence(samples=200, exceeded=False, quality_low=-0.2, quality_high=-0.01), "quiet"),
        (Evidence(samples=200, exceeded=True, quality_low=-0.2, quality_high=-0.1), "covariate-shift"),
    ],
)  # fmt: skip
def test_the_order_of_the_questions(evidence: Evidence, kind: str) -> None:
    finding = triage(evidence, CONFIG)
    assert finding.kind == kind
    assert finding.reasons
    assert (finding.action == "finetune") == (kind == "covariate-shift")
    assert (finding.who == "person") == (kind in ("data-bug", "prior-shift", "new-territory"))


def test_hostile_names_stay_short_and_visible() -> None:
    manifest = pd.DataFrame({"source": ["a\u202eb\n" + "x" * 500 + "/1.png"] * 30, "label": None})
    (count,) = feed.source_counts(manifest)
    assert len(count.name) <= 80
    assert "\u202e" not in count.name
    finding = triage(Evidence(samples=100, exceeded=False, schema=["y\x00" * 3000] * 40), CONFIG)
    assert len(finding.reasons) == 12
    assert max(map(len, finding.reasons)) <= 400
