"""What all command lines share: errors as one sentence, and the checks of single arguments."""

import argparse
import math
from pathlib import Path

from recipes._lab.errors import UserError

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130  # What a shell reports for a program that Ctrl-C ended.


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they come out as one sentence."""

    def error(self, message):
        raise UserError(message[0].upper() + message[1:])


def count(text):
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1. Received: {text}")
    return value


def rate(text):
    """Read a learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a number above 0. Received: {text}")
    return value


def folder(text):
    """Read the path of a folder."""
    return Path(text).expanduser()
