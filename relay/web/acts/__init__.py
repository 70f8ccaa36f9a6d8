"""Acts of operators: each shows a plan, and is then one row of `relay_command` with a reason and a name."""
