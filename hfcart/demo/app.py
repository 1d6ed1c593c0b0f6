"""A Space's app on this machine: started, and ended by Ctrl-C."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from hfcart.errors import HfcartError
from hfcart.system.children import python_child

_APP = "import runpy; runpy.run_path('app.py', run_name='__main__')"
_NOT_OURS = ("GRADIO_", "HF_")  # settings of the machine that must not reach it
_LONG = 10.0  # seconds in which an app that is asked to end has ended


def require_gradio() -> None:
    """Raise HfcartError if the app could not run for lack of Gradio, before the work that leads to it."""
    if importlib.util.find_spec("gradio") is None:
        raise HfcartError(
            "The Space is an app of Gradio's, which is not installed here.",
            hint="Install it: pip install 'hfcart[space]'",
        )


def run_app(folder: Path, environment: Mapping[str, str]) -> None:
    """Run the app of a Space's folder on loopback; it prints its address. Returns at Ctrl-C.

    Args:
        folder: made by `hfcart space`.
        environment: which Hub it reads, and with which token.

    Raises:
        HfcartError: it ended by itself.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_ANALYTICS_ENABLED": "False", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**inherited, **environment, **own}
    with python_child(_APP, flags=["-u"]) as (command, pipe):
        app = subprocess.Popen(command, cwd=folder, env=environment, pass_fds=(pipe,))
        try:
            app.wait()
            raise HfcartError(
                f"The app in {folder} ended with exit code {app.returncode}.", hint="What it printed above says why."
            )
        except KeyboardInterrupt:
            return
        finally:
            app.terminate()
            try:
                app.wait(_LONG)
            except subprocess.TimeoutExpired:
                app.kill()
                app.wait()
