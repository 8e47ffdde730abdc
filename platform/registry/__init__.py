"""Models, versions, aliases, uploads: what exists and whether it may be served."""
