"""The arrays of a step that a trace writer takes."""

from typing import Protocol

import numpy as np


class ArrivingArray(Protocol):
    """An array that is still on its way from a GPU. Asking for its values (`numpy.asarray`) waits for them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray: ...


StepArray = np.ndarray | ArrivingArray
