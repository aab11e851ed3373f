"""Artifacts: one directory for a model in every form that hardware wants, with hashes of all that is in it."""
