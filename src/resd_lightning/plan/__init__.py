"""`resd plan`: whether and how a run fits on a card, from its configuration alone."""
