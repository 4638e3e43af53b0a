"""The one exception that is meant for the person at the command line."""


class UserError(Exception):
    """A mistake in a configuration or a file. The message is one clear line: the key or file, what was found, what
    was expected, and the way out. Entry scripts print it without a traceback and exit with status 1."""
