"""Networks as plain torch.nn and transformers modules; Lightning is not imported here."""
