"""Errors that the command line prints as one message, without a traceback."""


class ExampleError(RuntimeError):
    """Something that the person who runs the example can mend; the message says how."""
