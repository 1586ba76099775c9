"""Where prompts come from and who judges the responses."""
