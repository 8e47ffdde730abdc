"""WebSocket routes of the console."""

from typing import Any

websocket_urlpatterns: list[Any] = []
