"""Django's settings, read once from the environment. `serinus up` sets what is needed; see `serinus up --help`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from inference import config as engine

REPO = Path(__file__).resolve().parents[2]
FRONTEND = REPO / "frontend"
DATA_DIR = engine.data_dir()
ARTIFACTS_DIR = engine.artifacts_dir()
INSECURE = os.environ.get("SERINUS_INSECURE", "") in {"1", "true", "yes"}
# How Triton's clients may load and unload: "explicit", unless `serinus up --model-repository` says none or poll.
MODEL_CONTROL_MODE = os.environ.get("SERINUS_MODEL_CONTROL_MODE") or "explicit"
MODEL_LOAD_TIMEOUT_S = engine.integer(os.environ, "SERINUS_MODEL_LOAD_TIMEOUT_S", 120, 1, 3600)
WEBHOOKS_ALLOW_PRIVATE = engine.flag(os.environ, "SERINUS_WEBHOOKS_ALLOW_PRIVATE")
LONE_ADMIN_APPROVES = os.environ.get("SERINUS_LONE_ADMIN_APPROVES", "") in {"1", "true", "yes"}


def _secret_key() -> str:
    if os.environ.get("SERINUS_SECRET_KEY"):
        return os.environ["SERINUS_SECRET_KEY"]
    file = DATA_DIR / "secret_key"
    return file.read_text() if file.exists() else "only-for-commands-before-the-first-start"


def _database(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    query = dict(pair.split("=", 1) for pair in parts.query.split("&") if "=" in pair)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "serinus",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(query.get("host", parts.hostname or "")),
        "PORT": str(parts.port or query.get("port", "")),
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        # Without a short reconnect_timeout the pool backs off for up to a minute after the database is back.
        "OPTIONS": {
            "connect_timeout": 3,
            "pool": {"min_size": 0, "max_size": 8, "timeout": 5, "reconnect_timeout": 1.5},
        },
    }


def _unix_redis(url: str) -> str:
    return url.replace("redis+socket://", "unix://", 1)


def _broker(url: str) -> str:
    return url.replace("unix://", "redis+socket://", 1)


SECRET_KEY = _secret_key()
DEBUG = False
ALLOWED_HOSTS = os.environ.get("SERINUS_ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]").split(",")
CSRF_TRUSTED_ORIGINS = [o for o in os.environ.get("SERINUS_TRUSTED_ORIGINS", "").split(",") if o]
DATABASES = {"default": _database(os.environ.get("DATABASE_URL", "postgresql:///serinus"))}
REDIS_URL = _unix_redis(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
GATEWAY_URL = os.environ.get("SERINUS_GATEWAY_URL") or (
    f"http://127.0.0.1:{os.environ.get('SERINUS_HTTP_PORT', '8000')}"
)
CONSOLE_PORT = engine.integer(os.environ, "SERINUS_CONSOLE_PORT", 8080, 1, 65535)
HOST_NAME = os.environ.get("SERINUS_HOST_NAME") or os.uname().nodename

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_filters",
    "django_htmx",
    "accounts",
    "registry",
    "telemetry",
    "fleet",
    "endpoints",
    "rollouts",
    "jobs",
    "worker",
    "console",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "console.middleware.RequestIdMiddleware",
    "console.middleware.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "accounts.middleware.ActorMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [FRONTEND / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "console.context.console",
            ]
        },
    }
]
AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTHENTICATION_BACKENDS = ["accounts.login.LimitedBackend"]
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login/"
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# One prefix per build, so that relative ES module imports are cached for ever without rewriting files.
STATIC_BUILD = os.environ.get("SERINUS_STATIC_BUILD", "dev")
STATIC_URL = f"/static/{STATIC_BUILD}/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [FRONTEND / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_IMMUTABLE_FILE_TEST = lambda path, url: STATIC_BUILD != "dev"  # noqa: E731, ARG005

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 << 20
MAX_UPLOAD_BYTES = engine.integer(os.environ, "SERINUS_MAX_UPLOAD_BYTES", 20 << 30, 1, 1 << 44)

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.KeyAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["accounts.parsers.StrictJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_PAGINATION_CLASS": "accounts.pagination.KeysetPagination",
    "EXCEPTION_HANDLER": "accounts.problems.handle",
    "PAGE_SIZE": 50,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Serinus control API",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": "serinus:ws"},
    }
}

CELERY_BROKER_URL = _broker(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
CELERY_TASK_IGNORE_RESULT = True
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_DEFAULT_QUEUE = "control"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 5, "socket_connect_timeout": 2, "retry_on_timeout": True}
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
CELERY_BEAT_SCHEDULE = {
    "reconcile": {"task": "fleet.tasks.reconcile", "schedule": 2.0, "options": {"expires": 2}},
    "publish": {"task": "endpoints.tasks.publish", "schedule": 1.0, "options": {"expires": 1}},
    "rollouts": {"task": "rollouts.tasks.tick", "schedule": 1.0, "options": {"expires": 1}},
    "webhooks": {"task": "rollouts.tasks.deliver_webhooks", "schedule": 3.0, "options": {"expires": 3}},
    "expire-webhook-deliveries": {
        "task": "rollouts.tasks.expire_deliveries",
        "schedule": 600.0,
        "options": {"expires": 600},
    },
    "sweep-replays": {"task": "rollouts.tasks.sweep_replays", "schedule": 2.0, "options": {"expires": 2}},
    "drain-samples": {"task": "telemetry.tasks.drain", "schedule": 1.0, "options": {"expires": 1}},
    "expire-samples": {"task": "telemetry.tasks.expire", "schedule": 600.0, "options": {"expires": 600}},
    "sweep-batches": {"task": "jobs.tasks.sweep", "schedule": 2.0, "options": {"expires": 2}},
    "expire-files": {"task": "jobs.tasks.expire", "schedule": 600.0, "options": {"expires": 600}},
    "expire-uploads": {"task": "registry.tasks.expire_uploads", "schedule": 600.0, "options": {"expires": 600}},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("SERINUS_LOG_LEVEL", "INFO")},
}
