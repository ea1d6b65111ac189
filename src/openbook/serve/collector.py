"""Python's collector of cycles, kept from stopping every stream while it looks."""

from __future__ import annotations

import gc


def calm() -> None:
    """What is there now is here to stay, and what comes is looked over in small pieces. Again after a model has gone.

    With 4,000 streams the collector stops them all for 0.4 s at a time, a third of all processor time. Requests that
    are answered leave no cycles behind, so it finds nothing there.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 200)  # objects, of these; the last: a look at everything after 10 million
