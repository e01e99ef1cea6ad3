"""The command line: one thin function a verb; errors speak of options."""
