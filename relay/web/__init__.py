"""The operator's page and its API. They read through `reading`, and make changes only by inserting a row of `relay_command`.

Data flows one way: a URL becomes a frozen query (`query`), a screen reads a frozen page for it (`screens`), and the page becomes
HTML (`render`) or JSON. No screen knows HTTP, and no template reads the database.
"""
