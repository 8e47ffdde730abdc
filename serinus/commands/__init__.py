"""One module per group of commands; each only reads its options, calls, and prints."""
