"""Arrays in, arrays out: compiled inner loops, each beside the readable numpy definition it must equal."""
