"""This app's resources at the control API."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from rollouts.api import Plans, Rollback, RolloutViewSet

router = SimpleRouter()
router.register("rollouts", RolloutViewSet, "rollout")
urlpatterns = [
    path("plans/", Plans.as_view(), name="plans"),
    path("endpoints/<slug:name>/rollback/", Rollback.as_view(), name="rollback"),
    *router.urls,
]
