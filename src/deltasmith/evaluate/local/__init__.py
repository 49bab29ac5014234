"""Tasks that are read from local files and need no network: `catalogue.load_tasks` builds them by name."""

from __future__ import annotations

__all__: list[str] = []
