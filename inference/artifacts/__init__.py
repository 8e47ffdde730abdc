"""Manifests, the content-addressed store, verification and format readers. Bytes and JSON only: imports no tensor library."""
