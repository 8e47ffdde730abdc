"""No row yet: see the docstring of the app."""
