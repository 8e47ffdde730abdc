"""The bounds of files and batches, in one place; docs/batches.md names them."""

from datetime import timedelta

MAX_FILE_BYTES = 200 << 20
MAX_TEAM_BYTES = 20 << 30
MAX_TEAM_FILES = 10_000
MAX_ACTIVE_BATCHES = 100  # of one team, in any status before an end
MAX_LINES = 50_000
MAX_LINE_BYTES = 1 << 20
MAX_ERRORS = 100  # that a batch's row tells of
MAX_METADATA = 16
MAX_ANSWER_BYTES = 16 << 20
FILE_LIFE = timedelta(days=30)
MIN_FILE_LIFE = timedelta(hours=1)
MAX_WINDOW = timedelta(days=14)
LEASE_S = 20.0
TICK_S = 0.5  # how often a slice commits, renews its lease and looks whether it shall stop
SLICE_LINES = 200
SLICE_S = 20.0
LINE_TIMEOUT_S = 300.0
LINE_TRIES = 3
MAX_INFLIGHT = 32
MAX_TROUBLES = 20  # steps in a row that failed for reasons of our own
PRIORITY = 100  # of generation: a smaller number goes first, live requests have 0
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
