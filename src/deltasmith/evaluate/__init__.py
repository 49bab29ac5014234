"""Score models on held-out items with numpy alone; training and merging are elsewhere.

Importing this package loads nothing; import `deltasmith.evaluate.llama` and `deltasmith.evaluate.items`.
"""
