from hypothesis import given
from hypothesis import strategies as st

from inference.protocol.edits import edits, text_distance

words = st.text(alphabet="abc\u00e9\U0001f426", max_size=14)


def by_the_table(a, b):
    """Levenshtein's distance as Wagner and Fischer fill it in."""
    above = list(range(len(b) + 1))
    for row, mine in enumerate(a, 1):
        line = [row]
        for column, theirs in enumerate(b, 1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (mine != theirs)))
        above = line
    return above[-1]


@given(words, words)
def test_it_counts_as_the_table_does(a, b):
    assert edits(a, b) == by_the_table(a, b)


@given(words, words)
def test_what_is_alike_at_both_ends_changes_nothing(a, b):
    longest = max(len(a), len(b)) + 7
    assert text_distance(f"abba{a}cab", f"abba{b}cab") == (edits(a, b) / longest, False)


def test_a_text_that_is_too_long_is_taken_to_go_on_as_it_began():
    a, b = "x" + "ab" * 5000 + "x", "y" + "ac" * 5000 + "y"
    distance, is_estimate = text_distance(a, b, 1000)
    assert is_estimate
    assert abs(distance - 0.5) < 0.01
