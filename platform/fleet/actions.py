"""The only writer of this app's rows: transaction, compare-and-swap, audit entry, on_commit."""
