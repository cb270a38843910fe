"""A pretrained encoder learns to classify texts."""
