"""TF-IDF baselines: they learn what is there to learn, from their draw's labels alone, in any script, from any text."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ssl_core.evaluation import text_baselines
from ssl_core.evaluation.text_baselines import SPREADING, UNION, WORDS, TextBaselines, spaceless

TOPICS = {
    "sea": ["boat", "wave", "tide", "salt", "harbour", "sail", "anchor", "fish", "coast"],
    "oven": ["bread", "flour", "dough", "yeast", "crust", "bake", "loaf", "butter", "salt"],
    "road": ["car", "wheel", "brake", "engine", "fuel", "lane", "tyre", "salt", "bridge"],
}
FILL = [
    "the",
    "a",
    "of",
    "and",
    "with",
    "under",
    "over",
    "near",
    "old",
    "new",
    "some",
    "very",
    "it",
    "was",
    "is",
    "there",
]
HAN = {"海": "船浪潮盐港帆锚鱼岸", "炉": "包粉团酵皮烤面油盐", "路": "车轮刹引油道胎盐桥"}


def written(count, seed, share=0.3):
    """Texts of one topic each, and the topics' numbers."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(TOPICS), count)
    words = [list(TOPICS.values())[k] for k in labels]
    return [" ".join(rng.choice(w if rng.random() < share else FILL) for _ in range(12)) for w in words], labels


def drawn(labels, per_class, draws):
    table = np.full((draws, len(labels)), -1)
    for i, row in enumerate(table):
        rng = np.random.default_rng(i)
        for k in np.unique(labels):
            chosen = rng.permutation(np.flatnonzero(labels == k))[:per_class]
            row[chosen] = k
    return table


@pytest.fixture(scope="module")
def topics():
    train, labels = written(300, 0)
    test, truth = written(120, 1)
    return TextBaselines(train, test), train, labels, test, truth


def test_more_labels_help_and_unlabeled_texts_help_where_labels_are_few(topics):
    baselines, _, labels, _, truth = topics
    few, many = (baselines.predictions(drawn(labels, n, 5)) for n in (2, 40))
    assert set(few) == set(many) == set(baselines.names) == {WORDS, UNION, SPREADING}
    for name in few:
        assert few[name].shape == (5, 120)
        assert (many[name] == truth).mean() > 0.85
        assert (many[name] == truth).mean() > (few[name] == truth).mean()
    assert (few[SPREADING] == truth).mean() > (few[WORDS] == truth).mean()


def test_leaving_out_the_words_that_no_label_has_changes_nothing(topics):
    """Against the plain way: one vectorizer, one regression on all columns."""
    baselines, train, labels, test, _ = topics
    two = drawn(np.where(labels == 2, 0, labels), 20, 3)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(train)
    x, z = vectorizer.transform(train), vectorizer.transform(test)
    for labels_of_draw, answer in zip(two, baselines.predictions(two)[WORDS], strict=True):
        known = labels_of_draw >= 0
        plain = LogisticRegression(C=10, solver="liblinear").fit(x[known], labels_of_draw[known]).predict(z)
        np.testing.assert_array_equal(answer, plain)


def test_a_draw_is_answered_alone(topics):
    baselines, _, labels, _, _ = topics
    draws = drawn(labels, 5, 3)
    together = baselines.predictions(draws)
    for i in range(3):
        for name, answer in baselines.predictions(draws[i : i + 1]).items():
            np.testing.assert_array_equal(answer[0], together[name][i])


def test_classes_keep_their_numbers_where_some_are_not_drawn(topics):
    baselines, _, labels, _, truth = topics
    draw = drawn(labels, 30, 1)
    draw[draw == 1] = -1
    for answer in baselines.predictions(draw).values():
        assert set(np.unique(answer)) == {0, 2}
        kept = truth != 1
        assert (answer[0, kept] == truth[kept]).mean() > 0.85
    draw[draw == 2] = -1
    for answer in baselines.predictions(draw).values():
        assert (answer == 0).all()


def test_a_script_without_spaces_is_read_by_characters():
    rng = np.random.default_rng(0)

    def write(count):
        labels = rng.integers(0, 3, count)
        own = [list(HAN.values())[k] for k in labels]
        return ["".join(rng.choice(list(w + "的了在是我有和")) for _ in range(10)) for w in own], labels

    (train, labels), (test, truth) = write(150), write(60)
    assert spaceless(train)
    baselines = TextBaselines(train, test)
    assert set(baselines.names) == {WORDS, SPREADING}
    assert "characters" in baselines.names[WORDS]
    assert (baselines.predictions(drawn(labels, 20, 2))[WORDS] == truth).mean() > 0.8


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Das Donaudampfschifffahrtsgesellschaftskapitänspatent verfällt."], True),  # one long word: a corpus has more
        (["Jokainen ihminen syntyy vapaana ja tasavertaisena arvoltaan ja oikeuksiltaan."], False),
        (["人人生而自由,在尊严和权利上一律平等。"], True),
        (["iPhone 手机很好用,我很喜欢它的屏幕和电池。"], True),
        (["모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다."], False),
        ([""], False),
    ],
)
def test_scripts_are_told_apart_by_their_white_space(texts, expected):
    assert spaceless(texts) is expected


@pytest.mark.parametrize("train", [["", " ", "\n", ""], ["!", "?", "...", "!!"], ["😀", "😡", "😀😀", "😡😡"]])
def test_texts_without_a_word_get_an_answer(train):
    labels = np.array([[0, 1, 0, 1]])
    baselines = TextBaselines(train, ["", "anything", "😡"])
    for answer in baselines.predictions(labels).values():
        assert answer.shape == (1, 3)
        assert np.isin(answer, [0, 1]).all()


def test_what_a_reader_has_to_know(monkeypatch):
    monkeypatch.setattr(text_baselines, "LONGEST", 50)
    monkeypatch.setattr(text_baselines, "SPREAD_MOST_TEXTS", 10)
    monkeypatch.setattr(text_baselines, "FIT_MOST_TEXTS", 20)
    train, labels = written(60, 0)
    baselines = TextBaselines([*train[:59], "word " * 30], train)
    assert SPREADING not in baselines.names
    notes = " ".join(baselines.notes(60))
    assert "first 50 characters" in notes
    assert "left out above 10" in notes
    assert (baselines.predictions(labels[None])[WORDS] == labels).mean() > 0.8


def test_draws_that_do_not_fit_are_refused(topics):
    baselines, _, labels, _, _ = topics
    for bad in (labels[:5][None], labels, np.full((1, len(labels)), -1)):
        with pytest.raises(ValueError, match="draws must be"):
            baselines.predictions(bad)
