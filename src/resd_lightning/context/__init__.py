"""What a run has learned in words: playbook, reflections, solutions, and the prompts made of them."""
