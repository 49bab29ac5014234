"""Models that answer: a numpy Llama for the plain install, transformers for everything else, and their opening.

Importing this package loads nothing; import `deltasmith.evaluate.models.opening`.
"""
