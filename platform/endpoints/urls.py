"""This app's resources at the control API."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from endpoints import repository_api as repository
from endpoints.api import EndpointViewSet

router = SimpleRouter()
router.register("endpoints", EndpointViewSet, "endpoint")
urlpatterns = [
    *router.urls,
    path("repository/", repository.Folder.as_view(), name="repository"),
    path("repository/<slug:name>/answer/", repository.Answer.as_view(), name="repository-answer"),
]
