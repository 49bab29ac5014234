"""What an edit does to the loss: Riemann sums of the gradient along the straight path that the edit takes.

Paper: "A Unified View of Delta Parameter Editing in Post-Trained Large-Scale Models" (arXiv 2410.13841).
"""
