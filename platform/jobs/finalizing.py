"""The last step of a batch: the output and the error file, each line once, in the order of the input.

Lines that were not run because the window closed or somebody cancelled stand in the error file with that as their code.
Killed half-way, it begins anew: the files get their rows in the transaction that ends the batch.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from jobs import journal, leases, lines, store
from jobs.leases import Held
from jobs.limits import FILE_LIFE
from jobs.models import Batch, File
from jobs.slices import Segment, is_partition
from jobs.statuses import Status

RENEW_RECORDS = 500
EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")


def finalize(held: Held) -> None:
    """Raises LeaseLost, StorageFull."""
    batch = held.batch
    end, why = _ending(batch)
    with store.NewFile(store.new_id("file-")) as output, store.NewFile(store.new_id("file-")) as errors:
        writer = _Writer(held, output, errors)
        writer.copy_segments()
        unrun = writer.tell_unrun(*why)
        for new in (output, errors):
            if new.size_bytes:
                new.keep()
        with transaction.atomic():
            leases.renew(held)
            made = {"output_file": _row(batch, output, "output"), "error_file": _row(batch, errors, "error")}
            leases.move(held, end, failed=F("failed") + unrun, **made)
    store.forget_journals(batch.public_id)


def _ending(batch: Batch) -> tuple[Status, tuple[str, str]]:
    if batch.status == Status.CANCELLING:
        return Status.CANCELLED, CANCELLED
    whole = batch.total > 0 and batch.cursor == batch.total
    return (Status.COMPLETED if whole else Status.EXPIRED), EXPIRED


class _Writer:
    """Copies records to the two files, renewing the lease."""

    def __init__(self, held: Held, output: store.NewFile, errors: store.NewFile) -> None:
        self._held, self._output, self._errors = held, output, errors
        self._since = 0

    def write(self, data: bytes, *, ok: bool) -> None:
        (self._output if ok else self._errors).write(data)
        self._since += 1
        if self._since >= RENEW_RECORDS:
            self._since = 0
            leases.renew(self._held)

    def copy_segments(self) -> None:
        """The committed lines, in order. Raises RuntimeError when a journal does not hold what its segment says."""
        batch = self._held.batch
        segments = [Segment(row.fence, row.first, row.count) for row in batch.segments.order_by("first")]
        if not is_partition(segments, batch.cursor):
            raise RuntimeError(f"the segments of {batch.public_id} do not cover its {batch.cursor} lines")
        for segment in segments:
            self._copy(segment, journal.path_of(batch.public_id, segment.fence))

    def _copy(self, segment: Segment, path: Path) -> None:
        places = journal.index(self._held.batch.public_id, segment.fence)
        for line in range(segment.first, segment.end):
            if line not in places:
                raise RuntimeError(f"{path.name} of {self._held.batch.public_id} lacks line {line}")
        with path.open("rb") as file:
            for line in range(segment.first, segment.end):
                place = places[line]
                file.seek(place.offset)
                self.write(file.read(place.size), ok=place.ok)

    def tell_unrun(self, code: str, message: str) -> int:
        """An error for every line at or after the cursor; answers how many."""
        batch = self._held.batch
        if batch.cursor >= batch.total:
            return 0
        path = store.path_of(batch.input_file_name)
        for line in lines.read(path, number=batch.cursor, offset=batch.offset):
            if line.number >= batch.total:
                break
            custom_id = lines.parse(line.data).custom_id
            self.write(record(batch, line.number, custom_id, error={"code": code, "message": message}), ok=False)
        return batch.total - batch.cursor


def record(
    batch: Batch, line: int, custom_id: str, *, response: object = None, error: dict[str, str] | None = None
) -> bytes:
    """A line of an output or error file, with its newline."""
    name = f"batch_req_{batch.public_id.removeprefix('batch_')}_{line}"
    told = {"id": name, "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _row(batch: Batch, new: store.NewFile, kind: str) -> File | None:
    if not new.size_bytes:
        return None
    life = timedelta(seconds=batch.output_life_s) if batch.output_life_s else FILE_LIFE
    return File.objects.create(
        public_id=new.public_id,
        team=batch.team,
        key=batch.key,
        person=batch.person,
        owner=batch.owner,
        purpose=File.Purpose.BATCH_OUTPUT,
        filename=f"{batch.public_id}_{kind}.jsonl",
        size_bytes=new.size_bytes,
        sha256=new.sha256,
        expires_at=Now() + life,
    )
