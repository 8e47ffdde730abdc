"""The front door: REST and WebSocket. No Django, no SQL, no Celery, no tensor library."""
