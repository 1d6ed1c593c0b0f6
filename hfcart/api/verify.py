"""`hfcart.verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from hfcart.api._calling import calling, plain, text_of
from hfcart.api.options import StrPath, VerifyOptions

if TYPE_CHECKING:
    from hfcart.api.results import Verified
    from hfcart.progress import Progress


def verify(
    target: StrPath,
    *,
    progress: bool | Progress = False,
    **options: Unpack[VerifyOptions],
) -> Verified:
    """Repeat a merge from its record and compare the bytes, as `hfcart verify` does. Prints nothing.

        assert hfcart.verify("user/merged")

    Args:
        target: a merge: a folder, or a Hub repo (`user/name`, `user/name@revision`).
        progress: True draws in a terminal or a notebook, a `Progress` of your own is told of every stage; False prints
            nothing, and warnings are Python's (HfcartWarning).

    Options:
        Machine:
            device (str): Where to compute. Default: auto.
            stream (bool): Read the sources by ranged requests.

    Returns:
        True if every byte came out the same, else False; with a sentence, and how far each tensor is off.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what is wrong, and a hint, which
            a traceback shows, what to do next.
        hfcart.errors.KeywordError: a keyword that there is not (a TypeError, too).
    """
    with calling("verify", options, VerifyOptions.__annotations__, progress) as listener:
        from hfcart.api.results import Verified
        from hfcart.commands.verify import run_verify

        found = run_verify(text_of(target), progress=listener, **{"device": "auto", "stream": False, **plain(options)})
        return Verified(found.identical, found.sentence, found.differences)
