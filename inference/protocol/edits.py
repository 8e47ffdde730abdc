"""How far two texts are apart: Levenshtein's distance, bit-parallel (Myers 1999, in the form of Hyyro 2003), with the
work bounded. Python's whole numbers serve as the bit vectors, so that a text of n characters takes n steps.
"""

from __future__ import annotations

ALIGNED_CHARS = 4096


def edits(a: str, b: str) -> int:
    """The least number of characters inserted, deleted or replaced that makes `a` into `b`. Of O(len(a)) steps, each
    over len(b) bits.
    """
    if not a or not b:
        return len(a) + len(b)
    where: dict[str, int] = {}
    for index, char in enumerate(b):
        where[char] = where.get(char, 0) | (1 << index)
    every, last = (1 << len(b)) - 1, 1 << (len(b) - 1)
    up, down, distance = every, 0, len(b)
    for char in a:
        match = where.get(char, 0)
        same = (((match & up) + up) ^ up) | match | down
        right, left = down | (every & ~(same | up)), up & same
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1) | 1, left << 1
        up = (left | ~(same | right)) & every
        down = right & same & every
    return distance


def text_distance(a: str, b: str, aligned_chars: int = ALIGNED_CHARS) -> tuple[float, bool]:
    """(edits by the longer text's length, 0..1; whether that is an estimate).

    What begins and what ends both alike is left out first; of the rest `aligned_chars` characters are aligned, and
    where it is longer it is taken to go on in the same manner.
    """
    longest = max(len(a), len(b))
    if a == b:
        return 0.0, False
    head = _alike(a, b)
    a, b = a[head:], b[head:]
    tail = _alike(a[::-1], b[::-1])
    a, b = a[: len(a) - tail], b[: len(b) - tail]
    rest = max(len(a), len(b))
    if rest <= aligned_chars:
        return edits(a, b) / longest, False
    a, b = a[:aligned_chars], b[:aligned_chars]
    return edits(a, b) / max(len(a), len(b)) * rest / longest, True


def _alike(a: str, b: str) -> int:
    """How many characters both begin with, by halving: the comparisons are the processor's, not Python's."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
