"""Commands that `serinus up` runs before anything serves."""
