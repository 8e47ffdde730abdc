"""Rows of endpoints in Django's admin: to be looked at. The published table stays out: it holds a secret."""

from __future__ import annotations

from django.contrib import admin

from accounts.admin import ReadOnly
from endpoints.models import Adapter, Endpoint, Variant


@admin.register(Endpoint)
class EndpointAdmin(ReadOnly):
    list_display = ("name", "team", "model", "access", "revision")
    list_select_related = ("team", "model")


@admin.register(Variant)
class VariantAdmin(ReadOnly):
    list_display = ("endpoint", "version", "weight_bp", "role")
    list_select_related = ("endpoint", "version__model")


@admin.register(Adapter)
class AdapterAdmin(ReadOnly):
    list_display = ("variant", "name", "version")
    list_select_related = ("variant__endpoint", "variant__version__model", "version__model")
