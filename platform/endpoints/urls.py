"""This app's resources at the control API."""

from rest_framework.routers import SimpleRouter

from endpoints.api import EndpointViewSet

router = SimpleRouter()
router.register("endpoints", EndpointViewSet, "endpoint")
urlpatterns = router.urls
