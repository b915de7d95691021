"""The one exception that means "the input is at fault, not the program"."""


class InputError(ValueError):
    """Bad input from a user: a file, a flag, a config value, a tensor.

    The message names the thing at fault and what to do about it. The command line prints it
    without a traceback and exits with code 2.
    """
