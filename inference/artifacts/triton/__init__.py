"""Triton's model repositories: config.pbtxt read, checked and said in our own terms. Bytes only; nothing runs here.

`config` reads the text, `translate` decides (pure), `repository` looks at folders. The law: a field that is set is
honoured or refused by name, never passed over; what changes no answer (a hint for speed) is told as a note.
"""
