"""The table of checkpoints: rows are tensor names, columns are models, a cell is one tensor of one model."""
