"""Classical baselines on texts: what a team would get without any pretraining.

TF-IDF with logistic regression, on words and on words and characters together, and label spreading on TF-IDF for those who
have unlabeled texts. Vocabulary and document frequencies come from all training texts, which needs no label; what reads
labels reads those of its own draw alone. Nothing here is tuned on test samples, and nothing is weakened: with these
settings TF-IDF is a strong baseline on short texts, often stronger than a network that learned from few of them.

Shapes: N training texts, M test texts, V n-grams, K classes, B draws of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_core.models.probes import SpreadGraph

if TYPE_CHECKING:
    from scipy import sparse

Array = np.ndarray

PENALTY = 10.0
"""Inverse penalty of the logistic regression. On texts of length one, 1 to 100 differ by less than a point at 20 to 8,000 labels;
choosing it by cross-validation inside each draw gave the same accuracy at ten times the cost."""

SPACELESS_BELOW = 0.06
"""Share of white space below which a script has no spaces between words: English has about .17, Finnish .12, Chinese .02."""
LONGEST = 20_000
"""Characters read of each text."""
FIT_MOST_TEXTS = 100_000
"""Vocabulary and document frequencies are counted on at most so many of the training texts."""
SPREAD_MOST_TEXTS = 30_000
"""Label spreading looks at all pairs of texts: beyond so many it is left out."""
SPREAD_DIMENSIONS = 100

WORDS, UNION, SPREADING = "tfidf", "tfidf-characters", "label-spreading"


class TextBaselines:
    """The baselines on one train split and one set of test texts; ``training.bench.Classical`` of the modality text."""

    def __init__(self, train_texts: Sequence[str], test_texts: Sequence[str], *, seed: int = 0) -> None:
        self._count = len(train_texts)
        train, test = ([text[:LONGEST] for text in texts] for texts in (train_texts, test_texts))
        self._cut = sum(len(text) > LONGEST for text in train_texts)
        self._spaceless = spaceless(train)
        self._inputs = dict(_features(train, test, self._spaceless))
        self._graph = self._spread_graph(seed)

    @property
    def names(self) -> Mapping[str, str]:
        """Short name to a name for people."""
        unit = "characters" if self._spaceless else "words"
        names = {WORDS: f"TF-IDF of {unit} + logistic regression"}
        if UNION in self._inputs:
            names[UNION] = "TF-IDF of words and characters + logistic regression"
        if self._graph is not None:
            names[SPREADING] = f"label spreading on TF-IDF of {unit}"
        return names

    def predictions(self, draws: Array) -> dict[str, Array]:
        """By short name, predicted classes ``(B, M)`` for each draw of labels ``(B, N)``, -1 = unknown."""
        draws = np.asarray(draws)
        if draws.ndim != 2 or draws.shape[1] != self._count or (draws < 0).all(axis=1).any():
            raise ValueError(f"draws must be (B, {self._count}) with a label in each row")
        answers = {
            name: np.stack([_logistic(*both, labels) for labels in draws]) for name, both in self._inputs.items()
        }
        if self._graph is not None:
            graph, test = self._graph
            answers[SPREADING] = graph.scores(draws, test, int(draws.max()) + 1).argmax(axis=-1)
        return answers

    def notes(self, labels: int) -> list[str]:
        """What a reader has to know where so many labels are used."""
        notes = []
        if self._cut:
            notes.append(f"the classical baselines read the first {LONGEST:,} characters of {self._cut:,} longer texts")
        if self._count > SPREAD_MOST_TEXTS:
            notes.append(f"label spreading is left out above {SPREAD_MOST_TEXTS:,} training texts")
        return notes

    def _spread_graph(self, seed: int) -> tuple[SpreadGraph, Array] | None:
        """The graph of the training texts and the test texts ``(M, D)`` beside it; None where there can be none."""
        from sklearn.decomposition import TruncatedSVD
        from threadpoolctl import threadpool_limits

        train, test = self._inputs[WORDS]
        dimensions = min(SPREAD_DIMENSIONS, train.shape[1] - 1, train.shape[0] - 1)
        if not 2 <= self._count <= SPREAD_MOST_TEXTS or dimensions < 2 or not len(train.data):
            return None
        with threadpool_limits(1, user_api="blas"):  # more threads wait for each other, above all on a busy machine
            svd = TruncatedSVD(dimensions, n_iter=3, random_state=seed).fit(train)
            return SpreadGraph(svd.transform(train)), svd.transform(test)


def spaceless(texts: Sequence[str]) -> bool:
    """Whether words are not told apart by white space, as in Chinese, Japanese or Thai; judged on about 2,000 texts."""
    sample = texts[:: max(1, len(texts) // 2000)]
    characters = sum(len(text) for text in sample)
    spaces = sum(character.isspace() for text in sample for character in text.strip())
    return characters > 0 and spaces / characters < SPACELESS_BELOW


def _features(
    train: list[str], test: list[str], without_spaces: bool
) -> list[tuple[str, tuple[sparse.csr_matrix, sparse.csr_matrix]]]:
    """TF-IDF matrices ``(N, V)`` and ``(M, V)`` by baseline."""
    from scipy import sparse

    if without_spaces:
        return [(WORDS, _tfidf(train, test, analyzer="char", ngram_range=(1, 3)))]
    words = _tfidf(train, test, ngram_range=(1, 2))
    # N-grams of characters that occur once say nothing, and they are most of them. With words they would be too few.
    characters = _tfidf(train, test, analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    union = tuple(sparse.hstack(both, format="csr") for both in zip(words, characters, strict=True))
    return [(WORDS, words), (UNION, (union[0], union[1]))]


def _tfidf(train: list[str], test: list[str], **options: Any) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Both matrices with rows of length one; without a column where no n-gram is found at all, as in blank texts."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **options)
    step = max(1, -(-len(train) // FIT_MOST_TEXTS))
    try:
        if step == 1:
            return vectorizer.fit_transform(train), vectorizer.transform(test)
        vectorizer.fit(train[::step])
        return vectorizer.transform(train), vectorizer.transform(test)
    except ValueError as error:
        # "empty vocabulary", or "after pruning, no terms remain": nothing to learn from, which is an answer, too.
        if "vocabulary" not in str(error) and "terms remain" not in str(error):
            raise
        return (sparse.csr_matrix((len(texts), 0), dtype=np.float32) for texts in (train, test))  # type: ignore[return-value]


def _logistic(train: sparse.csr_matrix, test: sparse.csr_matrix, labels: Array) -> Array:
    """Classes ``(M,)`` by logistic regression with an L2 penalty, one class against the rest, from the labels ``(N,)`` >= 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    known = np.flatnonzero(labels >= 0)
    x, y = train[known], labels[known]
    # An n-gram that none of these texts has gets weight zero: leaving it out changes nothing, and few labels are quick.
    used = np.unique(x.indices)
    present, counts = np.unique(y, return_counts=True)
    if len(present) == 1 or not len(used):
        return np.full(test.shape[0], present[counts.argmax()], dtype=np.int64)
    x, z = x[:, used], test[:, used]
    one = LogisticRegression(C=PENALTY, solver="liblinear", random_state=0)
    model = one if len(present) == 2 else OneVsRestClassifier(one)
    return np.asarray(model.fit(x, y).predict(z), dtype=np.int64)
