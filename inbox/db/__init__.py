"""The database that both sides share: tables, views, connections, migrations, intake, and the differences of the dialects."""
