"""Journals: what was written whole is read again, what a kill has torn is not."""

from __future__ import annotations

from jobs import journal


def test_records_come_back_by_line_the_first_one_counts() -> None:
    with journal.Journal("batch_a", 1) as written:
        written.append(3, b'{"a":1}', ok=True)
        written.append(2, '{"b":"é"}'.encode(), ok=False)
        written.append(3, b'{"a":2}', ok=False)
        written.sync()
    places = journal.index("batch_a", 1)
    path = journal.path_of("batch_a", 1)
    assert {line: (places[line].ok, journal.read(path, places[line])) for line in places} == {
        3: (True, b'{"a":1}\n'),
        2: (False, '{"b":"é"}\n'.encode()),
    }


def test_a_torn_end_is_no_record() -> None:
    with journal.Journal("batch_a", 1) as written:
        written.append(0, b'{"a":1}', ok=True)
        written.append(1, b'{"a":1}', ok=True)
        written.sync()
    path = journal.path_of("batch_a", 1)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert set(journal.index("batch_a", 1)) == set(range(whole[:cut].count(b"\n")))


def test_a_new_holder_adopts_whole_records_of_its_slice_the_newest_first() -> None:
    for fence, text in ((1, b'"old"'), (2, b'"new"'), (10, b'"later"')):
        with journal.Journal("batch_a", fence) as written:
            for line in (4, 5) if fence == 2 else (3, 4, 5, 6, 9):
                written.append(line, text, ok=True)
            written.sync()
    with journal.path_of("batch_a", 2).open("ab") as file:
        file.write(b'6 ok "torn')
    found = {line: data for line, _, data in journal.adoptable("batch_a", 10, 4, 9)}
    assert found == {4: b'"new"', 5: b'"new"', 6: b'"old"'}
    assert list(journal.adoptable("batch_b", 10, 4, 9)) == []
