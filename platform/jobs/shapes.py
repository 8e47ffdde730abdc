"""Rows in OpenAI's shapes, and lists by its cursors."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from django.db.models import QuerySet

from inference.errors import InvalidInput
from jobs.models import Batch, File
from jobs.statuses import Status

M = TypeVar("M", File, Batch)
MAX_LISTED = 10_000


def file(row: File) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": unix(row.created_at),
        "expires_at": unix(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
        "sha256": row.sha256,
    }


def batch(row: Batch) -> dict[str, Any]:
    ended = unix(row.ended_at)
    return {
        "id": row.public_id,
        "object": "batch",
        "endpoint": row.endpoint,
        "model": row.model or None,
        "errors": {"object": "list", "data": row.errors} if row.errors else None,
        "input_file_id": row.input_file_name,
        "completion_window": row.completion_window,
        "status": row.status,
        "output_file_id": row.output_file.public_id if row.output_file else None,
        "error_file_id": row.error_file.public_id if row.error_file else None,
        "created_at": unix(row.created_at),
        "in_progress_at": unix(row.in_progress_at),
        "expires_at": unix(row.expires_at),
        "finalizing_at": unix(row.finalizing_at),
        "cancelling_at": unix(row.cancelling_at),
        **{f"{end}_at": ended if row.status == end else None for end in ENDS},
        "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
        "metadata": row.metadata,
    }


ENDS = (Status.COMPLETED.value, Status.FAILED.value, Status.EXPIRED.value, Status.CANCELLED.value)


def unix(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at is not None else None


def listed(rows: QuerySet[M], query: dict[str, str], shown: Any, *, limit: int, most: int) -> dict[str, Any]:
    """A page after `after`, the newest first unless order=asc. Raises InvalidInput."""
    size = _size(query.get("limit", ""), limit, most)
    order = query.get("order") or "desc"
    if order not in {"asc", "desc"}:
        raise InvalidInput("order must be 'asc' or 'desc'")
    found = rows.order_by("id" if order == "asc" else "-id")
    if after := query.get("after", ""):
        mark = rows.filter(public_id=after[:64].replace("\0", "")).values_list("pk", flat=True).first()
        if mark is None:
            raise InvalidInput(f"after: there is no '{after[:64]}'")
        found = found.filter(pk__gt=mark) if order == "asc" else found.filter(pk__lt=mark)
    held = [shown(row) for row in found[: size + 1]]
    data = held[:size]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(held) > size,
    }


def _size(text: str, limit: int, most: int) -> int:
    if not text:
        return limit
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise InvalidInput(f"limit must be a number from 1 to {most}")
    return int(text)
