"""The errors that a command ends with in one sentence."""


class UserError(Exception):
    """A mistake in what the user gave: shown as one sentence, with exit code 2."""


class SearchFailed(Exception):
    """A search that cannot go on: shown as one sentence, with exit code 1. Its trials are kept."""
