"""Makes `fakes` importable from the folders below (pytest puts this file's folder on the path)."""
