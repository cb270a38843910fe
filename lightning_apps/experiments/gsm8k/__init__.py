"""An instruct model learns to reason in steps."""
