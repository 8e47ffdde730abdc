"""Shared by every test: where nothing else is said, the tests run on their own embedded PostgreSQL and Valkey."""
