"""When two lessons say the same: the rule, and an index that applies it to a large playbook."""

from __future__ import annotations

import math
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
        words: Casefolded words without punctuation, in order.
        word_set: The same without order.
        fixed: The tokens that duplicates must have in common, in order: those with a digit or an operator, negations.
    """

    words: tuple[str, ...]
    word_set: frozenset[str]
    fixed: tuple[str, ...]

    @property
    def is_short(self) -> bool:
        return len(self.words) < SHORT_TEXT_WORDS


class DuplicateIndex:
    """The texts of a playbook by id, to be asked whether a new text says what one of them says.

    Two texts are duplicates if all their numbers, operators and negations agree in order, and their words do: as a
    sequence where one of them is short, else by a Jaccard similarity of at least
    `MIN_SHARED_PERCENT`. So "m17 reverse
    shift" is neither "m18 reverse shift" nor "m17 shift reverse".

    Lookup is by prefix filtering: two sets as similar as that must share one of the first few words of each, whatever
    order the words are put in, if it is the same for both. Long words first keeps the lists short.
    """

    def __init__(self) -> None:
        self._signature_of: dict[str, _Signature] = {}
        self._ids_by_word: dict[str, dict[str, None]] = {}

    def add(self, id_: str, text: str) -> None:
        """Enter a text under its id; the id must be new."""
        signature = _signature(text)
        self._signature_of[id_] = signature
        for word in _prefix(signature.word_set):
            self._ids_by_word.setdefault(word, {})[id_] = None

    def remove(self, id_: str) -> None:
        """Forget the text under this id."""
        for word in _prefix(self._signature_of.pop(id_).word_set):
            del self._ids_by_word[word][id_]

    def find(self, text: str) -> str | None:
        """Return the id of the text that was entered first among those that say the same; None if there is none."""
        signature = _signature(text)
        candidates = {id_ for word in _prefix(signature.word_set) for id_ in self._ids_by_word.get(word, ())}
        if not candidates:
            return None
        matches = {id_ for id_ in candidates if _say_the_same(signature, self._signature_of[id_])}
        return next((id_ for id_ in self._signature_of if id_ in matches), None) if matches else None


def _say_the_same(one: _Signature, other: _Signature) -> bool:
    if one.fixed != other.fixed:
        return False
    if one.is_short or other.is_short:
        return one.words == other.words
    shared = len(one.word_set & other.word_set)
    union = len(one.word_set) + len(other.word_set) - shared
    return 100 * shared >= MIN_SHARED_PERCENT * union


# Playbooks change little from one update to the next, so most texts have been looked at before.
@lru_cache(maxsize=1 << 15)
def _signature(text: str) -> _Signature:
    folded = text.casefold()
    tokens = (token.strip(_SENTENCE_MARKS) for token in folded.split())
    fixed = tuple(token for token in tokens if _is_fixed(token))
    words = tuple(_WORD.findall(folded)) or (folded.strip(),)
    return _Signature(words, frozenset(words), fixed)


def _is_fixed(token: str) -> bool:
    has_digit = any(c.isdigit() for c in token)
    return has_digit or token in _NEGATIONS or token.endswith(("n't", "n\u2019t")) or bool(_OPERATOR.search(token))


def _prefix(words: frozenset[str]) -> list[str]:
    # Sets of n and m words with a Jaccard similarity of at least s share at least ceil(s * n) words, so they share one
    # of the first n - ceil(s * n) + 1 of each in any common order.
    length = len(words) - math.ceil(MIN_SHARED_PERCENT * len(words) / 100) + 1
    return sorted(words, key=lambda word: (-len(word), word))[:length]
