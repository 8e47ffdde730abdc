"""Demo models, made on this machine in seconds. Run as a process of its own: `python -m serinus.demo digits OUTDIR`.

Trains with torch and JAX, so nothing else of the command line imports this room.
"""
