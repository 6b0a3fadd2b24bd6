"""`python -m recipes`: the index of all recipes, and the commands that work on them."""

from recipes._lab.collection.command import main

if __name__ == "__main__":
    raise SystemExit(main())
