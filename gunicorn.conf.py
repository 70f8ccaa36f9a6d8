"""`gunicorn -c gunicorn.conf.py` serves the receiver from any folder that holds an inbox.toml.

The settings stand in `inbox/gunicorn_settings.py`, so that an installed package has them too (`inbox serve`).
"""

from inbox.gunicorn_settings import *  # noqa: F403  # gunicorn reads its settings from this module's names
