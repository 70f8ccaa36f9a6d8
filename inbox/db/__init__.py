"""The shared database: tables, views, connections, migrations, intake, and differences of the dialects."""
