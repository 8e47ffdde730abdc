"""Every page of the console."""

from __future__ import annotations

from django.urls import path

from console.views import (
    adapters,
    audit,
    endpoints,
    fleet,
    jobs,
    keys,
    models,
    overview,
    people,
    pipelines,
    playground,
    session,
    tryout,
    upload,
    versions,
)

app_name = "console"
MODEL = "models/<slug:name>/"
VERSION = f"{MODEL}versions/<int:number>/"
ENDPOINT = "endpoints/<slug:name>/"
PERSON = "people/u/<str:username>/"

urlpatterns = [
    path("", overview.overview, name="overview"),
    path("login/", session.Login.as_view(), name="login"),
    path("logout/", session.Logout.as_view(), name="logout"),
    path("models/", models.models, name="models"),
    path(MODEL, models.model, name="model"),
    path(f"{MODEL}describe/", models.describe, name="describe"),
    path(f"{MODEL}aliases/", models.set_alias, name="set_alias"),
    path(f"{MODEL}aliases/<slug:alias>/delete/", models.delete_alias, name="delete_alias"),
    path(f"{MODEL}golden/<int:golden>/remove/", models.remove_golden, name="remove_golden"),
    path(VERSION, versions.version, name="version"),
    path(f"{VERSION}report.json", versions.report, name="report"),
    path(f"{VERSION}deploy/", versions.deploy, name="deploy"),
    path(f"{VERSION}approve/", versions.approve, name="approve"),
    path(f"{VERSION}reject/", versions.reject, name="reject"),
    path(f"{VERSION}archive/", versions.archive, name="archive"),
    path(f"{VERSION}convert/", versions.convert, name="convert"),
    path(f"{VERSION}converted/", versions.converted, name="converted"),
    path("upload/", upload.upload, name="upload"),
    path("pipelines/new/", pipelines.new, name="new_pipeline"),
    path("pipelines/check/", pipelines.check, name="check_pipeline"),
    path("pipelines/create/", pipelines.create, name="create_pipeline"),
    path("endpoints/", endpoints.endpoints, name="endpoints"),
    path(ENDPOINT, endpoints.endpoint, name="endpoint"),
    path(f"{ENDPOINT}weights/", endpoints.weights, name="weights"),
    path(f"{ENDPOINT}access/", endpoints.access, name="access"),
    path(f"{ENDPOINT}delete/", endpoints.delete, name="delete_endpoint"),
    path(f"{ENDPOINT}adapters/", adapters.attach, name="attach_adapter"),
    path(f"{ENDPOINT}adapters/<slug:adapter>/remove/", adapters.detach, name="detach_adapter"),
    path(f"{ENDPOINT}try/", tryout.try_it, name="try"),
    path(f"{ENDPOINT}golden/", tryout.save_golden, name="save_golden"),
    path(f"{ENDPOINT}versions/<int:number>/undeploy/", endpoints.undeploy, name="undeploy"),
    path(f"{ENDPOINT}versions/<int:number>/scale/", endpoints.scale, name="scale"),
    path("playground/", playground.playground, name="playground"),
    path("jobs/", jobs.jobs, name="jobs"),
    path("jobs/<slug:job>/", jobs.job, name="job"),
    path("jobs/<slug:job>/cancel/", jobs.cancel, name="cancel_job"),
    path("fleet/", fleet.fleet, name="fleet"),
    path("fleet/hosts/<str:name>/drain/", fleet.drain, name="drain"),
    path("fleet/replicas/<uuid:replica>/", fleet.replica, name="replica"),
    path("fleet/replicas/<uuid:replica>/restart/", fleet.restart, name="restart"),
    path("keys/", keys.keys, name="keys"),
    path("keys/new/", keys.create, name="create_key"),
    path("keys/<slug:key>/rates/", keys.rates, name="key_rates"),
    path("keys/<slug:key>/revoke/", keys.revoke, name="revoke_key"),
    path("people/", people.people, name="people"),
    path("people/new/", people.create_person, name="create_person"),
    path("people/teams/new/", people.create_team, name="create_team"),
    path("people/member/", people.add_member, name="add_member"),
    path("people/why/", people.why, name="why"),
    path(f"{PERSON}", people.person, name="person"),
    path(f"{PERSON}role/", people.set_role, name="set_role"),
    path(f"{PERSON}password/", people.set_password, name="set_password"),
    path(f"{PERSON}deactivate/", people.deactivate, name="deactivate"),
    path("audit/", audit.audit, name="audit"),
]
