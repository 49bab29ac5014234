"""From bytes on disk to checkpoints and back: files nobody vouches for come in here, and are checked here."""
