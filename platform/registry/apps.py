from django.apps import AppConfig


class RegistryConfig(AppConfig):
    name = "registry"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from accounts.explain import FINDERS
        from registry.finders import find_model, find_version

        FINDERS["model"] = find_model
        FINDERS["version"] = find_version
