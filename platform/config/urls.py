"""One table of every URL of the console process. Uploads (/api/uploads/) and WebSockets are mounted in asgi.py."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from accounts import pages

urlpatterns: list[URLPattern | URLResolver] = [
    path("livez", pages.livez, name="livez"),
    path("readyz", pages.readyz, name="readyz"),
    path("api/", include("accounts.urls")),
    path("api/", include("registry.urls")),
    path("api/", include("fleet.urls")),
    path("api/", include("endpoints.urls")),
    path("api/", include("telemetry.urls")),
    path("api/", include("rollouts.urls")),
    path("v2/repository/", include("endpoints.repository_urls")),
    path("v1/", include("jobs.urls")),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs/", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    path("admin/", admin.site.urls),
    path("", include("console.urls")),
]
handler400 = "accounts.pages.bad_request"
handler403 = "accounts.pages.forbidden"
handler404 = "accounts.pages.not_found"
handler500 = "accounts.pages.server_error"
