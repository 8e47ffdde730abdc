from __future__ import annotations

import pytest

from inference.gateway.nearest import MAX_COMPARED, meant


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mpl", ". Did you mean 'mlp'?"),
        ("MLP", ". Did you mean 'mlp'?"),
        ("digts", ". Did you mean 'digits'?"),
        ("whisper", ""),
        ("", ""),
        ("x" * 128, ""),
    ],
)
def test_the_nearest_name_is_told(name: str, words: str) -> None:
    assert meant(name, ["digits", "mlp", "a-very-long-name"]) == words


def test_only_so_many_names_are_looked_at() -> None:
    looked_at = 0

    def names() -> object:
        nonlocal looked_at
        for number in range(10_000):
            looked_at += 1
            yield f"m{number:04}"

    meant("m0000", names())  # type: ignore[arg-type]
    assert looked_at <= MAX_COMPARED + 1
