"""The experiments: what they share, and a folder for each."""
