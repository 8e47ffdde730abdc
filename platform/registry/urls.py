"""URLs of the registry API. Names in them are slugs, never paths."""

from __future__ import annotations

from django.urls import re_path

from accounts.names import SLUG
from registry import api, golden_api

MODEL = rf"models/(?P<model>{SLUG})"
VERSION = rf"{MODEL}/versions/(?P<number>[1-9][0-9]{{0,8}})"
ALIAS = rf"{MODEL}/aliases/(?P<alias>{SLUG})"

urlpatterns = [
    re_path(r"^models/\Z", api.Models.as_view()),
    re_path(rf"^{MODEL}/\Z", api.ModelByName.as_view()),
    re_path(rf"^{MODEL}/versions/\Z", api.Versions.as_view()),
    re_path(rf"^{VERSION}/\Z", api.VersionByNumber.as_view()),
    re_path(rf"^{VERSION}/report/?\Z", api.Report.as_view()),
    re_path(rf"^{VERSION}/approve/\Z", api.Approve.as_view()),
    re_path(rf"^{VERSION}/reject/\Z", api.Reject.as_view()),
    re_path(rf"^{VERSION}/archive/\Z", api.Archive.as_view()),
    re_path(rf"^{VERSION}/convert/\Z", api.Convert.as_view()),
    re_path(rf"^{VERSION}/converted/\Z", api.ConvertedFile.as_view()),
    re_path(rf"^{MODEL}/aliases/\Z", api.Aliases.as_view()),
    re_path(rf"^{ALIAS}/\Z", api.AliasByName.as_view()),
    re_path(rf"^{ALIAS}/history/\Z", api.AliasHistory.as_view()),
    re_path(rf"^{MODEL}/golden/\Z", golden_api.GoldenInputs.as_view()),
    re_path(rf"^{MODEL}/golden/(?P<golden>[1-9][0-9]{{0,17}})/\Z", golden_api.GoldenById.as_view()),
    re_path(r"^blobs/check/\Z", api.CheckBlobs.as_view()),
]
