"""Training techniques for Keras: one file, one technique, one claim that anyone can measure again.

`python -m recipes.dropout` trains a baseline and the technique on the same seeds and prints a
verdict. The top of each file needs only Keras: copy it into a project.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys


class _LoadOnFirstUse(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets the first `import keras` return at once; Keras and TensorFlow load when first used.

    A recipe says `import keras` as any program does, and that takes six seconds. The process that
    prints results has no use for it: workers train. `importlib.util.LazyLoader` does the work.
    A recipe that needs TensorFlow at the top loads both, Keras first: the other way round, each
    would find the other half loaded.
    """

    def find_spec(self, name, path=None, target=None):
        if name == "keras":
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = importlib.util.LazyLoader(spec.loader)
            return spec
        if name == "tensorflow":
            sys.meta_path.remove(self)
            # To look is to load Keras, and TensorFlow with it, unless Keras is what asks for it.
            if hasattr(sys.modules.get("keras"), "version"):
                return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec):
        return sys.modules[spec.name]

    def exec_module(self, module):
        pass


# TensorFlow reports every absent GPU library on the terminal; errors still come as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# While `python -m recipes.NAME` imports this package, and only then, `sys.argv[0]` is "-m".
if sys.argv[:1] == ["-m"] and "keras" not in sys.modules:
    sys.meta_path.insert(0, _LoadOnFirstUse())
