"""The one error type that the command line turns into a single clear line and exit code 2."""


class InputError(ValueError):
    """What a user gave is wrong: the message says what, where, and what was expected.

    Raised for bad files, configs, ids and shapes. Anything else that escapes is a fault of
    ours and ends with exit code 1.
    """
