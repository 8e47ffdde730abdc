"""Batch predictions over files, as OpenAI's Files and Batches: what was asked for, how far it is, what came of it.

Rows are the truth, Celery's messages only wake; jobs.slices holds the law by which no line is lost or written twice.
"""
