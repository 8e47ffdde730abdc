"""This app's resources at the control API."""

from django.urls import path, re_path
from rest_framework.routers import SimpleRouter

from rollouts import webhook_api
from rollouts.api import Plans, Rollback, RolloutViewSet
from rollouts.replay_api import RecordedView, RecordingView, ReplaysView

WEBHOOK = r"^webhooks/(?P<webhook>[1-9][0-9]{0,17})"
router = SimpleRouter()
router.register("rollouts", RolloutViewSet, "rollout")
urlpatterns = [
    path("plans/", Plans.as_view(), name="plans"),
    path("endpoints/<slug:name>/rollback/", Rollback.as_view(), name="rollback"),
    re_path(r"^webhooks/\Z", webhook_api.Webhooks.as_view()),
    re_path(rf"{WEBHOOK}/\Z", webhook_api.WebhookById.as_view()),
    re_path(rf"{WEBHOOK}/test/\Z", webhook_api.TestWebhook.as_view()),
    re_path(rf"{WEBHOOK}/deliveries/\Z", webhook_api.Deliveries.as_view()),
    path("endpoints/<slug:name>/recording/", RecordingView.as_view(), name="recording"),
    path("endpoints/<slug:name>/recorded/", RecordedView.as_view(), name="recorded"),
    path("endpoints/<slug:name>/replays/", ReplaysView.as_view(), name="replays"),
    *router.urls,
]
