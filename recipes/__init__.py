"""Training techniques for Keras: one file, one technique, one claim that anyone can measure again.

`python -m recipes.dropout` trains a baseline and the technique on the same seeds and prints a
verdict. The top of each file needs only Keras: copy it into a project.
"""

import importlib.util
import os
import sys


def _load_on_first_use(name):
    """Import `name` when it is first used, so that printing a finished result does not wait for it.

    `importlib.util.LazyLoader` is the standard library's own tool for this. A recipe says
    `import keras`, as any program does, and pays the five seconds of TensorFlow's import when
    it first builds something.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


# TensorFlow reports every absent GPU library on the terminal; errors still show as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_load_on_first_use("keras")
