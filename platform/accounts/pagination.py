"""Keyset pagination, so that no page counts or skips rows."""

from rest_framework.pagination import CursorPagination


class KeysetPagination(CursorPagination):
    """Newest first; `?cursor=` goes on, `?page_size=` up to 200."""

    ordering = "-pk"
    page_size_query_param = "page_size"
    max_page_size = 200
