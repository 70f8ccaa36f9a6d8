"""Operations of operators, in one table that every channel reads: command lines, page, API, rows in SQL, and reference pages."""
