"""The name under which users know our public classes: `streamtask.Client`, not that of the module where its code lies.

So a traceback reads `streamtask.TaskFailed: …`, and a pickle of today loads when the code has moved. Always true: the
annotations of such a class are the types themselves, not their texts, which only its own module could resolve.
"""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import TypeVar, get_type_hints

Kind = TypeVar("Kind", bound=type)


def public(kind: Kind) -> Kind:
    """A class decorator, the outermost one: it takes the class as it is when every other has made of it what it will be."""
    texts = inspect.get_annotations(kind)
    if texts:
        names = vars(sys.modules[kind.__module__])
        kind.__annotations__ = get_type_hints(SimpleNamespace(__annotations__=texts), names, include_extras=True)
    kind.__module__ = "streamtask"
    return kind
