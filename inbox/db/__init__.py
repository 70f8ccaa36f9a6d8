"""The database both sides share: its tables and views, how to connect, and where the two dialects differ."""
