"""Matching the features of two models by when they fire: numpy and numba alone. No files, no models."""
