"""One served version in its own sandboxed process. It accepts on the listener that it was given and never binds or connects."""
