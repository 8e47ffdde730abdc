"""The console's WebSockets. config.asgi puts the origin check and the session in front."""

from __future__ import annotations

from django.urls import path

from console.chat import ChatConsumer
from console.consumers import ConsoleConsumer

websocket_urlpatterns = [
    path("ws/console/", ConsoleConsumer.as_asgi()),
    path("ws/v2/stream", ChatConsumer.as_asgi()),
]
