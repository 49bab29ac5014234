"""The features paper's experiment on models of our own: texts, one-layer models, dictionaries, the page."""
