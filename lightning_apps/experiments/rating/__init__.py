"""A hierarchical classifier learns to rate long documents."""
