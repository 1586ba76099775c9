"""The distillation loss and how responses are aligned for it."""
