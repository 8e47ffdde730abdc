"""Triton's repository calls, at the paths that its clients know; gateways pass them on to here."""

from django.urls import path

from endpoints import repository_api as repository

urlpatterns = [
    path("index", repository.Index.as_view(), name="v2-repository-index"),
    path("models/<str:name>/load", repository.Load.as_view(), name="v2-repository-load"),
    path("models/<str:name>/unload", repository.Unload.as_view(), name="v2-repository-unload"),
]
