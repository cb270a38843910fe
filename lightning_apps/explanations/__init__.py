"""What the verdict of a rating run rests on, and how far that is true; for the command `explain`."""
