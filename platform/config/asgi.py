"""The console process as one ASGI application: uploads and WebSockets beside Django."""
# ruff: noqa: E402 (the apps must be loaded before their modules)

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

from django.core.asgi import get_asgi_application

pages = get_asgi_application()  # loads the apps, so it stands before their imports

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.conf import settings

from accounts.limits import RequestLimits
from accounts.origin import SameOrigin
from console.routing import websocket_urlpatterns
from jobs import uploading
from registry.tus import PREFIX
from registry.tus import application as uploads

limited_pages = RequestLimits(pages, max_body_bytes=settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
sockets = SameOrigin(AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))))


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Routes by kind and path; everything that is no upload and no WebSocket is Django's."""
    if scope["type"] == "websocket":
        await sockets(scope, receive, send)
    elif scope["type"] == "http" and scope["path"].startswith(PREFIX):
        await uploads(scope, receive, send)
    elif scope["type"] == "http" and uploading.takes(scope):
        await uploading.application(scope, receive, send)
    else:
        await limited_pages(scope, receive, send)
