"""The papers' comparisons, one file each; every one turns a `Bench` into rows."""
