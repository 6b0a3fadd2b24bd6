"""Data sets as one train, one validation and one test part of NumPy arrays, drawn fairly.

```python
from data import load

split = load("digits", seed=0, samples=1000, label_noise=0.3)
model.fit(split.train.x, split.train.y, validation_data=split.validation)
model.evaluate(split.test.x, split.test.y)
```

`DATASETS` describes every data set and `names()` lists them, without reading any data.
README.md in this folder says where each comes from and how the parts are drawn.
"""

from data._catalogue import DATASETS, DataError, Dataset, names
from data._split import Part, Split, WrongLabels, load

__all__ = ["DATASETS", "DataError", "Dataset", "Part", "Split", "WrongLabels", "load", "names"]
