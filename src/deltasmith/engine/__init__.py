"""Running a plan: tiles, survey passes, memory budget, workers, progress."""
