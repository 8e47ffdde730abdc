"""Decides when the waiting requests become a batch. Pure: values and a clock in, a value out."""
