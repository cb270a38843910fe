"""What a run leaves behind to be looked at again: sample log, crash dumps, the first non-finite value."""
