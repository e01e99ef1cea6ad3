"""What a step will need: computed from a config, and proved by compiling it."""
