"""Sync routes: builds the calls and reads their responses. Pure, except for importing functions of the operator."""
