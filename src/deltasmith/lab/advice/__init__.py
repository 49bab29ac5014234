"""Advice held against the lab: what it would have said of every case, and what turned out to be best."""
