"""One HTML file that shows what became of the features: no library, no network, no torch."""
