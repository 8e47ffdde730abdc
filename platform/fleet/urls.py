"""This app's resources at the control API."""

from rest_framework.routers import SimpleRouter

from fleet.api import DeploymentViewSet, HostViewSet, ReplicaViewSet

router = SimpleRouter()
router.register("hosts", HostViewSet, "host")
router.register("replicas", ReplicaViewSet, "replica")
router.register("deployments", DeploymentViewSet, "deployment")
urlpatterns = router.urls
