"""The lab's evidence on `deltasmith loss`: what is predicted of an edit's effect on the loss, against what is measured.

`points` names the edits, `ground` measures them, `run` carries the experiments out, `page` writes what came of them.
Importing this package loads nothing heavy.
"""
