"""OpenAI's addresses of files and batches. POST /v1/files is mounted in asgi.py."""

from django.urls import path

from jobs import api

urlpatterns = [
    path("files", api.Files.as_view(), name="v1-files"),
    path("files/<str:file_id>", api.FileDetail.as_view(), name="v1-file"),
    path("files/<str:file_id>/content", api.FileContent.as_view(), name="v1-file-content"),
    path("batches", api.Batches.as_view(), name="v1-batches"),
    path("batches/<str:batch_id>", api.BatchDetail.as_view(), name="v1-batch"),
    path("batches/<str:batch_id>/cancel", api.Cancel.as_view(), name="v1-batch-cancel"),
]
