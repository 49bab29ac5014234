"""Which operation acts on which cell, decided from headers alone."""
