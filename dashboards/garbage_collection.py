"""Keeps Streamlit's garbage collections short."""

import gc


def freeze_loaded_objects() -> None:
    """Keeps what is loaded now out of every later garbage collection.

    Streamlit collects garbage after each rerun of each session. With torch loaded one collection takes 0.2 s, during
    which no other session gets an answer.
    """
    gc.collect()
    gc.freeze()
