"""URLs of the accounts API. Names in them are slugs, never paths."""

from __future__ import annotations

from django.urls import re_path

from accounts import api
from accounts.names import KEY_ID, SLUG, USERNAME

KEY = rf"keys/(?P<key_id>{KEY_ID})"
TEAM = rf"teams/(?P<team>{SLUG})"
USER = rf"users/(?P<username>{USERNAME})"

urlpatterns = [
    re_path(r"^me/\Z", api.Me.as_view()),
    re_path(r"^explain/?\Z", api.Explain.as_view()),
    re_path(r"^keys/\Z", api.Keys.as_view()),
    re_path(rf"^{KEY}/\Z", api.Key.as_view()),
    re_path(rf"^{KEY}/revoke/\Z", api.RevokeKey.as_view()),
    re_path(r"^teams/\Z", api.Teams.as_view()),
    re_path(rf"^{TEAM}/\Z", api.TeamByName.as_view()),
    re_path(rf"^{TEAM}/members/(?P<username>{USERNAME})/\Z", api.Member.as_view()),
    re_path(r"^users/\Z", api.Users.as_view()),
    re_path(rf"^{USER}/\Z", api.UserByName.as_view()),
    re_path(rf"^{USER}/password/\Z", api.Password.as_view()),
    re_path(rf"^{USER}/deactivate/\Z", api.Deactivate.as_view()),
    re_path(r"^audit/\Z", api.Audit.as_view()),
]
