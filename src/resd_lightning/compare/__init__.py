"""`resd compare`: several configurations, seeds and one budget, run and put side by side."""
