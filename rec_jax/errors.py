"""The errors that the command line turns into a single clear line."""


class InputError(ValueError):
    """What a user gave is wrong: the message says what, where, and what was expected.

    Raised for bad files, configs, ids and shapes; exit code 2. Anything else that escapes is a
    fault of ours, or of the machine, and ends with exit code 1.
    """


class TrainingError(RuntimeError):
    """Training cannot go on, such as a loss that is no longer finite; exit code 1."""


class Preempted(RuntimeError):
    """A signal asked a training to stop, and it has saved; exit code 75 (EX_TEMPFAIL)."""
