"""The row's cells → one cell: one file per merge, element by element, along arcs, or by matrices."""
