"""The Celery application. Tasks carry ids and nothing else; rows are the truth."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# `bootstrap` has made Django's checks, which load every page and the whole API; a worker needs neither.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")
app = Celery("serinus")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
