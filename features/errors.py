"""Errors a user can cause, and can fix.

BieffError
    InputError            a data set, list, video or model that was named cannot be used
    ConfigError           a setting is unknown or out of range
    StoreError            a store cannot be written or read as asked
        StoreMissingError     no store at that path
        StoreMismatchError    the store was written by another encoder, recipe or format

The command line prints the message and exits 1, without a traceback.  Every message is one
sentence: what, expected, got; then what to do next.
"""


class BieffError(Exception):
    """Base class of everything a user can cause, and can fix."""


class InputError(BieffError, ValueError):
    """A data set, list, video or model that was named cannot be used."""


class ConfigError(BieffError, ValueError):
    """A setting is unknown or out of range."""


class StoreError(BieffError):
    """A store cannot be written or read as asked."""


class StoreMissingError(StoreError, FileNotFoundError):
    """There is no feature store at the path."""


class StoreMismatchError(StoreError, ValueError):
    """The store was written by another encoder, recipe or format than the one asked for."""
