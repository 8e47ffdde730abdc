"""A Triton model repository becomes models, versions and endpoints, through the control API like everybody's.

`planning` decides what is to be done (pure but for reading the folder), `sending` makes versions, `serving` puts them
behind endpoints, `folder` follows a folder for `serinus up --model-repository`. The law: whatever the outcome of a
model is, it is told; no model is left half imported without a word.
"""
