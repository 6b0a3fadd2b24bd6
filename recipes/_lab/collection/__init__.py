"""What works on all recipes together: `python -m recipes`.

command.py     the arguments, and what they start
catalogue.py   finds the recipes and reads their cards and records, without importing them
index.py       the index, by symptom
batch.py       run: one recipe after the other
copies.py      copy: a recipe for a project of one's own
readme.py      the tables in README.md
"""
