"""When two lessons say the same: the rule, and an index that applies it to a large playbook."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MIN_SHARED_PERCENT = 90
"""Jaccard similarity of the word sets, in percent, from which two longer lessons say the same."""
SHORT_TEXT_WORDS = 8
"""Below this, one word is too much of the text to differ in, and order carries the meaning."""

_WORD = re.compile(r"\w+")
# What turns a lesson into another one though most words agree: numbers, operators, negations.
_OPERATOR = re.compile(r"[<>=+*/%^&|~\u2260\u2264\u2265]|(?<!\w)-\w")
_NEGATIONS = frozenset({"not", "no", "never", "cannot", "without", "except", "unless"})
_SENTENCE_MARKS = ".,;:!?()[]{}'\"`\u2018\u2019\u201c\u201d"


@dataclass(frozen=True)
class _Signature:
    """What of a text the rule looks at.

    Attributes:
        fixed: The tokens that duplicates must have in common, in order: those with a digit or an operator, negations.
        words: Casefolded words without punctuation, in order, of a short text; None of a longer one.
        word_set: The words of a longer text without order; empty for a short one.
        keys: Duplicates have one of these in common. Hashes: they differ between processes, what is found doesn't.
    """

    fixed: tuple[str, ...]
    words: tuple[str, ...] | None
    word_set: frozenset[str]
    keys: tuple[int, ...]


class DuplicateIndex:
    """The texts of a playbook by id, to be asked whether a new text says what one of them says.

    Two texts are duplicates if all their numbers, operators and negations agree in order, and their words do: as a
    sequence where one of them is short, else by a Jaccard similarity of at least `MIN_SHARED_PERCENT`. So "m17 reverse
    shift" is neither "m18 reverse shift" nor "m17 shift reverse".

    A short text is looked up as it is. Of longer ones those are compared that have the same numbers, operators and
    negations, and the same words in one part of the vocabulary: cut into more parts than two texts as similar as that
    differ in words, they agree in one of them. So it costs nothing that some words come up in most lessons.
    """

    def __init__(self) -> None:
        self._entered: dict[str, tuple[int, _Signature]] = {}
        self._ids_by_key: dict[int, dict[str, None]] = {}
        self._count = 0

    def add(self, id_: str, text: str) -> None:
        """Enter a text under its id; the id must be new."""
        signature = _signature(text)
        self._entered[id_] = self._count, signature
        self._count += 1
        for key in signature.keys:
            self._ids_by_key.setdefault(key, {})[id_] = None

    def remove(self, id_: str) -> None:
        """Forget the text under this id."""
        _, signature = self._entered.pop(id_)
        for key in signature.keys:
            del self._ids_by_key[key][id_]

    def find(self, text: str) -> str | None:
        """Return the id of the text that was entered first among those that say the same; None if there is none."""
        signature = _signature(text)
        candidates = {id_ for key in signature.keys for id_ in self._ids_by_key.get(key, ())}
        matches = [id_ for id_ in candidates if _say_the_same(signature, self._entered[id_][1])]
        return min(matches, key=lambda id_: self._entered[id_][0], default=None)


def _say_the_same(one: _Signature, other: _Signature) -> bool:
    if one.fixed != other.fixed or one.words != other.words:
        return False
    if one.words is not None:
        return True
    shared = len(one.word_set & other.word_set)
    union = len(one.word_set) + len(other.word_set) - shared
    return 100 * shared >= MIN_SHARED_PERCENT * union


# Playbooks change little from one update to the next, so most texts have been looked at before. A playbook with more
# texts than this is looked at from the start in every update: what it needs next has always just been dropped.
@lru_cache(maxsize=1 << 17)
def _signature(text: str) -> _Signature:
    folded = text.casefold()
    tokens = (token.strip(_SENTENCE_MARKS) for token in folded.split())
    fixed = tuple(token for token in tokens if _is_fixed(token))
    words = tuple(_WORD.findall(folded)) or (folded.strip(),)
    if len(words) < SHORT_TEXT_WORDS:  # the number of words agrees among duplicates, so both are short or neither
        return _Signature(fixed, words, frozenset(), (hash((fixed, words)),))
    word_set = frozenset(words)
    return _Signature(fixed, None, word_set, tuple(hash((fixed, part)) for part in _parts(word_set)))


def _is_fixed(token: str) -> bool:
    has_digit = any(c.isdigit() for c in token)
    return has_digit or token in _NEGATIONS or token.endswith(("n't", "n\u2019t")) or bool(_OPERATOR.search(token))


def _parts(words: frozenset[str]) -> list[tuple[int, int, frozenset[str]]]:
    """Return the words cut into parts, once for each number of parts that a duplicate may call for."""
    parts = []
    for number in sorted({_most_differing(len(words), size) + 1 for size in _sizes_of_duplicates(len(words))}):
        cut: list[list[str]] = [[] for _ in range(number)]
        for word in words:
            cut[hash(word) % number].append(word)
        parts += [(number, i, frozenset(part)) for i, part in enumerate(cut)]
    return parts


def _sizes_of_duplicates(size: int) -> range:
    # A Jaccard similarity of s is at most the smaller set's size over the larger's.
    return range(-(-MIN_SHARED_PERCENT * size // 100), 100 * size // MIN_SHARED_PERCENT + 1)


def _most_differing(size: int, other: int) -> int:
    """Return in how many words two sets of these sizes may differ, both counted, and still be duplicates."""
    # shared / (size + other - shared) >= s, solved for the shared ones.
    shared = -(-MIN_SHARED_PERCENT * (size + other) // (100 + MIN_SHARED_PERCENT))
    return size + other - 2 * shared
