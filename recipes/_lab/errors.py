"""The one error that is the user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave: shown as one sentence, with exit code 2."""
