"""Drawing that all pictures share."""
