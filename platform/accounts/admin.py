"""Django's own admin for superusers: edits go through actions, so they are audited like everybody's."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin import ModelAdmin
from django.contrib.auth.models import Group
from django.forms import ModelForm
from django.http import HttpRequest

from accounts import actions
from accounts.login import LoginForm
from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from accounts.permissions import actor_of

admin.site.login_form = LoginForm
admin.site.site_header = "Serinus"
admin.site.has_permission = (  # type: ignore[method-assign]
    lambda request: request.user.is_active and request.user.is_superuser
)
admin.site.unregister(Group)


class ReadOnly(ModelAdmin):  # type: ignore[type-arg]
    """To be looked at; changed through the console and the API only."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(AuditEntry)
class AuditAdmin(ReadOnly):
    list_display = ("at", "actor", "verb", "object_kind", "object_name", "team", "reason")
    list_filter = ("verb", "object_kind", "actor_kind")
    search_fields = ("actor", "object_name")
    list_select_related = ("team",)
    show_full_result_count = False


@admin.register(ApiKey)
class KeyAdmin(ReadOnly):
    list_display = ("id", "name", "team", "role", "platform_admin", "created_at", "expires_at", "revoked_at")
    exclude = ("digest",)
    list_select_related = ("team",)


class NewUserForm(ModelForm):  # type: ignore[type-arg]
    password = forms.CharField(widget=forms.PasswordInput)

    class Meta:
        model = User
        fields = ("username", "email", "password", "is_superuser")


@admin.register(User)
class UserAdmin(ReadOnly):
    """A person can be made here; roles, passwords and deactivation are on the console's people page."""

    list_display = ("username", "email", "is_superuser", "is_active", "last_login")
    exclude = ("password", "groups", "user_permissions")
    search_fields = ("username", "email")

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return True

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **kwargs) if obj else NewUserForm

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fields(request, obj) if obj else NewUserForm.Meta.fields

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        wanted = form.cleaned_data
        made = actions.create_user(
            actor=actor_of(request),
            username=wanted["username"],
            password=wanted["password"],
            email=wanted["email"],
            superuser=wanted["is_superuser"],
        )
        obj.pk = made.pk


@admin.register(Team)
class TeamAdmin(ReadOnly):
    list_display = ("name", "created_at")


@admin.register(Membership)
class MembershipAdmin(ReadOnly):
    list_display = ("user", "team", "role")
    list_filter = ("role",)
    list_select_related = ("user", "team")
