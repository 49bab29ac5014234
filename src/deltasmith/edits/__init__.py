"""Edits: one file per way to change a delta before it is merged."""
