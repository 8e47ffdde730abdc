"""This app's resources at the control API."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from rollouts.api import Plans, Rollback, RolloutViewSet
from rollouts.replay_api import RecordedView, RecordingView, ReplaysView

router = SimpleRouter()
router.register("rollouts", RolloutViewSet, "rollout")
urlpatterns = [
    path("plans/", Plans.as_view(), name="plans"),
    path("endpoints/<slug:name>/rollback/", Rollback.as_view(), name="rollback"),
    path("endpoints/<slug:name>/recording/", RecordingView.as_view(), name="recording"),
    path("endpoints/<slug:name>/recorded/", RecordedView.as_view(), name="recorded"),
    path("endpoints/<slug:name>/replays/", ReplaysView.as_view(), name="replays"),
    *router.urls,
]
