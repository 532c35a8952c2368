"""The type checker that conftest.py gives to jaxtyping's import hook."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as type checkers have it
