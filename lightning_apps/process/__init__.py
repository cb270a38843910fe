"""The process of a command: what it says, what stops it, its parent, its memory."""
