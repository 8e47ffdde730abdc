"""This app has no resources of its own: an endpoint's numbers lie under /api/endpoints/{name}/metrics/, where its
team is known.
"""

from django.urls import URLPattern

urlpatterns: list[URLPattern] = []
