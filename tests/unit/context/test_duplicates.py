import random
import time

import pytest

from resd_lightning.context.duplicates import DuplicateIndex

LONG = "When the tape holds only red marks walk to its end and then reverse every mark in place"


def says_the_same(one, other):
    index = DuplicateIndex()
    index.add("e1", one)
    forward = index.find(other)
    index = DuplicateIndex()
    index.add("e1", other)
    assert index.find(one) == forward
    return forward == "e1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("m17 reverse shift", "m17 reverse shift"),
        ("m17 reverse shift", "  M17: reverse,\nshift. "),
        (LONG, LONG.upper() + "!"),
        (LONG, LONG.replace("Red", "red") + " always"),  # 17 words, one more: 17/18
        ("???", "???"),
    ],
)
def test_the_same_lesson_in_other_clothes_is_a_duplicate(one, other):
    assert says_the_same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("m17 reverse shift", "m18 reverse shift"),
        ("m17 reverse shift", "m17 shift reverse"),
        ("m17 reverse shift", "m17 reverse"),
        (LONG + " 3 times", LONG + " 4 times"),
        (LONG + " from m1 to m2", LONG + " from m2 to m1"),
        (LONG + " while x < y", LONG + " while x > y"),
        (LONG, LONG.replace("then reverse", "then never reverse")),
        (LONG, LONG.replace("red marks", "blue stains").replace("walk", "jump")),
        ("x + y", "x - y"),
        ("step -1", "step 1"),
        ("???", "!!!"),
    ],
)
def test_a_lesson_that_says_something_else_is_none(one, other):
    assert not says_the_same(one, other)


def test_nine_tenths_of_the_words_is_the_boundary():
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india"]
    assert says_the_same(" ".join(words), " ".join([*words, "juliett"]))  # 9 / 10
    assert not says_the_same(" ".join(words[:8]), " ".join([*words[:8], "juliett"]))  # 8 / 9


def test_the_first_of_several_matches_is_named_and_removed_texts_are_forgotten():
    index = DuplicateIndex()
    index.add("b", LONG)
    index.add("a", LONG + " always")
    assert index.find(LONG) == "b"
    index.remove("b")
    assert index.find(LONG) == "a"
    index.remove("a")
    assert index.find(LONG) is None


def test_the_index_finds_what_comparing_all_pairs_finds():
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "abcdefgh" for b in "klmn"]
    texts = []
    for _ in range(60):
        base = rng.sample(vocabulary, rng.randint(6, 24))
        texts.append(base)
        texts.append([word for word in base if rng.random() > 0.05] or base)
        texts.append([*base, rng.choice(vocabulary)])
    index = DuplicateIndex()
    for number, words in enumerate(texts):
        index.add(str(number), " ".join(words))

    def same(one, other):
        if min(len(one), len(other)) < 8:
            return one == other
        return 10 * len(set(one) & set(other)) >= 9 * len(set(one) | set(other))

    for words in texts:
        expected = next(str(number) for number, other in enumerate(texts) if same(words, other))
        assert index.find(" ".join(words)) == expected


def test_ten_thousand_entries_are_searched_quickly():
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(2000)]
    index = DuplicateIndex()
    for number in range(10_000):
        index.add(str(number), " ".join(rng.choices(vocabulary, k=25)))
    queries = [" ".join(rng.choices(vocabulary, k=25)) for _ in range(50)]
    start = time.perf_counter()
    assert all(index.find(query) is None for query in queries)
    assert time.perf_counter() - start < 3.0


def test_the_index_finds_what_reading_the_entries_one_by_one_finds_while_they_come_and_go():
    rng = random.Random(0)
    plain = ["".join(rng.choices("abcde", k=rng.randint(2, 9))) for _ in range(40)]
    fixed = ["not", "never", "3", "m17", "x<y", "-1"]

    def altered(words):
        words = list(words)
        for _ in range(rng.randint(0, 2)):
            if len(words) > 1 and rng.random() < 0.5:
                words.pop(rng.randrange(len(words)))
            else:
                words.insert(rng.randrange(len(words) + 1), rng.choice(plain + fixed))
        return words

    def same(one, other):
        if [word for word in one if word in fixed] != [word for word in other if word in fixed]:
            return False
        one, other = (" ".join(words).replace("<", " ").replace("-", " ").split() for words in (one, other))
        if min(len(one), len(other)) < 8:
            return one == other
        return 10 * len(set(one) & set(other)) >= 9 * len(set(one) | set(other))

    index, entries, found = DuplicateIndex(), {}, 0
    for number in range(600):
        is_new = not entries or rng.random() < 0.4
        length = rng.randint(1, 24)
        words = rng.choices(plain + fixed, k=length) if is_new else altered(rng.choice(list(entries.values())))
        expected = next((id_ for id_, other in entries.items() if same(words, other)), None)
        assert index.find(" ".join(words)) == expected
        found += expected is not None
        entries[f"e{number}"] = words
        index.add(f"e{number}", " ".join(words))
        if rng.random() < 0.3:
            gone = rng.choice(list(entries))
            del entries[gone]
            index.remove(gone)
    assert 100 < found < 500


def test_a_hundred_thousand_entries_of_a_playbook_are_indexed_in_each_update_quickly():
    texts = [f"m{number} reverse shift" for number in range(100_000)]
    for is_first in (True, False):
        index = DuplicateIndex()
        start = time.process_time()
        for number, text in enumerate(texts):
            index.add(str(number), text)
        assert index.find("m99999 reverse shift") == "99999"
        assert is_first or time.process_time() - start < 2.0  # a fifth of that is usual
