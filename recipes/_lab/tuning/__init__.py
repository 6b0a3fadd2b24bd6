"""The search for learning rates: every variant gets its own, with the same budget, by Keras Tuner.

`python -m recipes.dropout --tune` searches on validation data, with seeds that reports never use.

    search.py     what is searched, and the trials that are finished; no Keras
    oracle.py     Keras Tuner's Oracle: hands out trials and keeps what is finished
    tuner.py      Keras Tuner's HyperModel and Tuner: trains a trial
    workers.py    runs a search in this process, or as a chief with workers
    outcome.py    the best rates, the table, tuning.json and tuning.csv
    picture.py    the PNG
    command.py    the options, and what they start

The search's folders are projects of Keras Tuner: its own classes open them.
"""
