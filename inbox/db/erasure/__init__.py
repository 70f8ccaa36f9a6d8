"""Erases what the database holds of one entity: a plan, then steps that are short, repeatable and go on where they were."""
