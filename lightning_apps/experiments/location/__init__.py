"""City id -> coordinates, learned from scratch."""
