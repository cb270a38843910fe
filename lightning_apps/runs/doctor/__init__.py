"""What doctor finds before a run: settings, machine, data, model, generation."""
