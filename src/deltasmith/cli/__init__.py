"""The command line: thin, and importing only what the chosen command needs."""
