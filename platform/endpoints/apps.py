from django.apps import AppConfig


class EndpointsConfig(AppConfig):
    name = "endpoints"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from accounts.explain import FINDERS
        from endpoints.models import Endpoint

        FINDERS["endpoint"] = lambda name: Endpoint.objects.select_related("team").filter(name=name).first()
