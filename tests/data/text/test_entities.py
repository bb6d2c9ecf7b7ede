"""Entities: files and their mistakes, names in tokens, and finding them against a slow reference."""

import logging
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.text.entities import EntityFinder, entity_ids, load_entities
from ssl_core.errors import UserError

# ---- files


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_list_has_one_name_a_line_each_once_without_comments(tmp_path):
    file = write(
        tmp_path / "names.txt", "\ufeff# people\nMarie Curie\n\n  #\n#ff\n  Warsaw \r\nMarie Curie\n北京\n#\tx\nC#"
    )
    assert load_entities(file) == ["Marie Curie", "#ff", "Warsaw", "北京", "C#"]


@pytest.mark.parametrize(("name", "separator"), [("graph.csv", ","), ("graph.tsv", "\t"), ("GRAPH.TSV", "\t")])
def test_of_triples_subjects_and_objects_are_the_entities(tmp_path, name, separator):
    rows = [("subject", "relation", "object"), ("Marie Curie", "bornIn", "Warsaw"), ("Pierre Curie", "marriedTo", "Marie Curie")]  # fmt: skip
    file = write(tmp_path / name, "\n".join(separator.join(row) for row in rows))
    assert load_entities(file) == ["Marie Curie", "Warsaw", "Pierre Curie"]


@pytest.mark.parametrize(
    ("content", "cause", "place"),
    [
        (b"Curie\n\xff\xfe\n", "not UTF-8", "line 2"),
        (b"Curie\nMarie\0\n", "NUL", "line 2"),
        (b"Curie\n\n" + b"x" * 5000, "more than 1000 characters", "line 3"),
        (b"x" * 100_000, "more than 1000 characters", "line 1"),
        (b"", "no entity", "names.txt"),
        (b"# only a comment\n\n", "no entity", "names.txt"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, content, cause, place):
    file = write(tmp_path / "names.txt", content)
    with pytest.raises(UserError, match=cause) as raised:
        load_entities(file)
    assert str(file) in raised.value.place
    assert place in raised.value.place
    assert raised.value.next_step


def test_a_file_that_is_not_there_a_folder_and_wrong_triples(tmp_path):
    for path in (tmp_path / "absent.txt", tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            load_entities(path)
    with pytest.raises(UserError, match="instead of 3") as raised:
        load_entities(write(tmp_path / "graph.csv", "a,b,c\nMarie Curie\n"))
    assert "line 2" in raised.value.place


# ---- names in tokens


@dataclass
class Letters:
    """A tokenizer of letters; ``blanks`` writes a blank as part of the next letter, as byte-level tokenizers do."""

    blanks: bool = False
    unk_id: int = 0
    known: dict[str, int] = field(default_factory=lambda: {c: i for i, c in enumerate("_abcdefgh")})

    def encode(self, texts):
        return [self._one(text.lower()) for text in texts]

    def _one(self, text):
        ids, shift = [], 0
        for letter in text:
            if letter == " ":
                shift = 100 if self.blanks else 0
                continue
            ids.append(self.known.get(letter, 0) + shift)
            shift = 0
        return ids


def test_names_become_tokens_with_the_tokenizers_own_normalisation_each_form_once():
    assert entity_ids(["Ab", "aB", "c d"], Letters()) == [[1, 2], [3, 4]]


def test_a_name_is_given_as_after_a_blank_too():
    assert entity_ids(["ab", "c d"], Letters(blanks=True)) == [[1, 2], [101, 2], [3, 104], [103, 104]]


def test_names_with_unknown_tokens_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        assert entity_ids(["ab", "xyz", "az"], Letters()) == [[1, 2]]
    assert "2 of 3 entities are left out" in caplog.text
    assert entity_ids([], Letters()) == []


# ---- finding

VOCABULARY = 8
ORDINARY = np.arange(VOCABULARY) >= 2  # 0 and 1 are special
CONTINUES = np.arange(VOCABULARY) >= 6  # 6 and 7 go on with a word


def begins_of(ids, lengths):
    begins, begin = np.zeros(len(ids), dtype=bool), 0
    for length in lengths:
        for i in range(begin, begin + length):
            first = i == begin or not ORDINARY[ids[i - 1]]
            begins[i] = ORDINARY[ids[i]] and (first or not CONTINUES[ids[i]])
        begin += length
    return begins


def slow_find(entities, ids, lengths):
    """Longest first, then left to right: each place where an entity stands between word boundaries, unless taken."""
    begins, begin, places = begins_of(ids, lengths), 0, []
    for length in lengths:
        end = begin + length
        for start in range(begin, end):
            for entity in entities:
                stop = start + len(entity)
                at_edge = stop == end or (stop < end and (begins[stop] or not ORDINARY[ids[stop]]))
                if begins[start] and at_edge and tuple(ids[start:stop]) == tuple(entity):
                    places.append((start, len(entity)))
        begin = end
    taken, kept = set(), set()
    for start, size in sorted(set(places), key=lambda place: (-place[1], place[0])):
        if taken.isdisjoint(range(start, start + size)):
            taken.update(range(start, start + size))
            kept.add((start, size))
    return sorted(kept)


def find(entities, ids, lengths=None):
    ids = np.array(ids, dtype=np.uint16)
    lengths = np.array([len(ids)] if lengths is None else lengths, dtype=np.int64)
    starts, sizes = EntityFinder(entities, ORDINARY)(ids, lengths, begins_of(ids, lengths))
    return list(zip(starts.tolist(), sizes.tolist(), strict=True))


@settings(max_examples=400, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=25), min_size=1, max_size=4),
    entities=st.lists(st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=5), min_size=1, max_size=8),
)
def test_finds_what_the_slow_reference_finds(texts, entities):
    ids, lengths = [token for text in texts for token in text], [len(text) for text in texts]
    assert find(entities, ids, lengths) == slow_find(entities, ids, lengths)


@settings(max_examples=100, deadline=None)
@given(
    ids=st.lists(st.integers(2, 3), max_size=60), entities=st.lists(st.lists(st.integers(2, 3), min_size=1), min_size=1)
)
def test_heavily_overlapping_finds_agree_too(ids, entities):
    assert find(entities, ids) == slow_find(entities, ids, [len(ids)])


def test_the_longest_match_wins():
    york, city = [2, 3], [2, 3, 4]
    assert find([york, city], [0, 2, 3, 4, 2, 3, 5, 1]) == [(1, 3), (4, 2)]
    assert find([[2, 3], [3, 4, 5]], [2, 3, 4, 5]) == [(1, 3)]  # even where a shorter one begins earlier
    assert find([[2, 3], [2, 3, 4], [4, 2, 3, 5]], [2, 3, 4, 2, 3, 5]) == [(0, 2), (2, 4)]  # a shorter one beside it


def test_no_match_inside_a_longer_word_or_across_texts():
    assert find([[2]], [2, 6, 1, 2]) == [(3, 1)]  # the word goes on
    assert find([[6]], [2, 6]) == []  # begins inside a word
    assert find([[6]], [6, 2]) == [(0, 1)]  # a text's first token begins a word, whatever it is
    assert find([[2, 3]], [2, 3, 2, 3], [1, 3]) == [(2, 2)]


def test_a_text_of_one_repeated_word_is_divided_from_the_left():
    assert find([[2, 2]], [2] * 2001) == [(2 * i, 2) for i in range(1000)]


def test_special_tokens_and_nothing_are_no_entities():
    finder = EntityFinder([[], [1, 2], [3], [3]], ORDINARY)
    assert finder.entities == [(3,)]
    nothing = EntityFinder([], ORDINARY)(np.array([2, 3]), np.array([2]), np.array([True, True]))
    assert [len(part) for part in nothing] == [0, 0]
