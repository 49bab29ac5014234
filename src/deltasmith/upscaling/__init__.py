"""A base and its experts as one sparse mixture of low-rank experts: SMILE, and Twin-Merging on the same machinery.

Nothing is imported here. `deltasmith.upscaling.build` writes such models, `deltasmith.upscaling.auto` makes
transformers' Auto classes load them.
"""
